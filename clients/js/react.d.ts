/**
 * Routecast metrics in React.
 *
 *     const { metrics, state } = useMetrics("https://metrics.example", { fields: ["total_decisions"], interval: 1 });
 */
export type View = import("./types.js").View;
export type Options = import("./types.js").Options;
export type Shown = {
    /**
     * the newest document; null before the first
     */
    metrics: import("./types.js").Metrics | null;
    /**
     * what is known of it
     */
    frame: import("./types.js").Frame | null;
    /**
     * how it stands with the connection
     */
    state: import("./types.js").State;
    /**
     * why there is no newer document, if the server says so
     */
    error: import("./routecast.js").RoutecastError | null;
};
/**
 * Follow a view of a server for as long as the component is mounted. Components with the same URL
 * share one connection, those with the same view one subscription, too. The first one's `options`
 * count.
 *
 * @param {string} url the server's address
 * @param {View & Options} [options] the view, and how to connect
 * @returns {Shown}
 */
export declare function useMetrics(url: string, { fields, filter, window, interval, ...options }?: View & Options): Shown;
