/**
 * Live metrics of a Routecast server, over one WebSocket that comes back by itself. For browsers,
 * workers and Node.js; no dependencies.
 *
 *     import { connect } from "@routecast/client";
 *
 *     const client = connect("http://127.0.0.1:8000");
 *     client.subscribe({ fields: ["total_decisions"], interval: 1 }, ({ total_decisions }) => {
 *       console.log(total_decisions);
 *     });
 *     // … and when it is no longer needed:
 *     client.close();
 *
 * connecting ─► connected ◄─► stale      heard from; not heard from, though the connection is open
 *     ▲            │            │
 *     │            ▼            ▼
 *     └─────── reconnecting ◄───┘        waits, longer each time, and connects again
 *
 * `closed` is for good: by `close()`, or by a server that does not want this client as it is; then
 * `retry()` is the way back.
 */
export type View = import("./types.js").View;
export type Metrics = import("./types.js").Metrics;
export type Frame = import("./types.js").Frame;
export type Position = import("./types.js").Position;
export type Source = import("./types.js").Source;
export type Totals = import("./types.js").Totals;
export type State = import("./types.js").State;
export type Options = import("./types.js").Options;
export type Socket = import("./types.js").Socket;
export type OnError = (error: RoutecastError) => void;
/** What the server could not do. When `retryable`, the subscription stays, and may yet be served. */
export declare class RoutecastError extends Error {
    code: string;
    retryable: boolean;
    /**
     * @param {string} code such as `bad_request`
     * @param {string} message
     * @param {boolean} retryable
     */
    constructor(code: string, message: string, retryable: boolean);
}
/**
 * Connect to a server, by its address or its stream's. The first attempt begins at once, and there
 * is no last one. Throws a TypeError where the address is none, or there is no WebSocket.
 *
 * @param {string | URL} url such as `https://metrics.example`
 * @param {Options} [options]
 */
export declare function connect(url: string | URL, options?: Options): Client;
/**
 * Apply a JSON Merge Patch (RFC 7396). Neither argument is changed; what stays the same is shared
 * with the result.
 *
 * @param {unknown} target
 * @param {unknown} patch
 * @returns {any}
 */
export declare function mergePatch(target: unknown, patch: unknown): any;
/**
 * Milliseconds to wait before the next attempt: by chance from nothing to a bound that grows ("full
 * jitter"), so that a thousand pages do not come back in the same instant.
 *
 * @param {number} failures attempts that failed in a row, from 0
 * @param {{firstDelay: number, longestDelay: number}} bounds
 */
export declare function retryDelay(failures: number, { firstDelay, longestDelay }: {
    firstDelay: number;
    longestDelay: number;
}): number;
/**
 * What is subscribed to, for a callback or a loop. A loop that is slow gets fewer, newer values:
 * only the newest waits for it.
 *
 * @template T
 */
export declare class Subscription<T> {
    #private;
    /** End it: nothing more comes, and a loop over it ends. */
    close(): void;
    /** The values from now on, for one loop; to leave the loop closes the subscription. */
    [Symbol.asyncIterator](): AsyncGenerator<Awaited<T>, void, unknown>;
}
/** A connection to one server, and all that is subscribed to over it. */
export declare class Client {
    #private;
    /**
     * @param {string | URL} url
     * @param {Options} [options]
     */
    constructor(url: string | URL, { token, ...options }?: Options);
    /** How it stands with the connection. */
    get state(): import("./types.js").State;
    /**
     * Have a function called each time the state changes; call what is returned to end that.
     *
     * @param {(state: State) => void} listener
     */
    onState(listener: (state: State) => void): () => undefined;
    /**
     * Follow a view: `onMetrics` is called with each new document. Without it, loop over what is returned.
     *
     * @param {View} [view]
     * @param {(metrics: Metrics, frame: Frame) => void} [onMetrics]
     * @param {OnError} [onError]
     * @returns {Subscription<Metrics>}
     */
    subscribe(view?: View, onMetrics?: (metrics: Metrics, frame: Frame) => void, onError?: OnError): Subscription<Metrics>;
    /** Try again now, whatever the state: a person asked for it. After `close()` it does nothing. */
    retry(): void;
    /** End the connection and all subscriptions for good. */
    close(): void;
}
