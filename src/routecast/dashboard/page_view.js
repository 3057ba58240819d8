/** The view that the page asks for, and the types of the answers. An unknown value is missing, never 0. */

/**
 * @typedef {Object} Metrics the document of `VIEW`
 * @property {number} total_decisions
 * @property {number} [avg_confidence] 0 to 1
 * @property {Record<string, StrategyTotals>} strategy_performance
 * @property {{high: number, medium: number, low: number}} confidence_distribution
 * @property {Record<string, number>} provider_usage
 * @property {number} [rate] decisions per second over the last minute
 * @property {{total?: number, priced: number, unpriced: number}} cost dollars, and two counts
 * @property {{count: number, rate?: number}} errors
 * @property {{avg?: number, p50?: number, p95?: number, p99?: number}} latency_ms
 * @property {string} timestamp RFC 3339
 */

/** @typedef {import("./client/routecast.js").Totals} StrategyTotals */
/** @typedef {import("./client/routecast.js").Source} Source where the server's numbers come from */

/**
 * @typedef {Object} Components the engines that the server uses
 * @property {"ok" | "failing" | "corrupt"} database
 * @property {"ok" | "failing"} cache
 * @property {"ok" | "failing"} bus
 * @property {"ok" | "failing"} census
 */

/**
 * With authentication, only an operator gets more than the status and the version.
 *
 * @typedef {Object} Health
 * @property {"ok" | "degraded"} status
 * @property {string} version
 * @property {number} [active_connections]
 * @property {Components} [components]
 * @property {Source | "none"} [source]
 * @property {Record<string, number>} [full_names] limits of names that are reached, by part
 */

/** @type {import("./client/routecast.js").View & {interval: number}} */
export const VIEW = {
  fields: [
    "total_decisions",
    "avg_confidence",
    "strategy_performance",
    "confidence_distribution",
    "provider_usage",
    "rate",
    "cost",
    "errors",
    "latency_ms",
  ],
  interval: 1,
};
