/**
 * The server's messages: their shapes, and where they come from.
 *
 * Numbers that may be unknown are `null`, which never means zero.
 */

/**
 * @typedef {Object} StrategyTotals
 * @property {number} count
 * @property {number | null} avg_cost dollars
 * @property {number | null} avg_confidence 0 to 1
 */

/**
 * @typedef {Object} Metrics
 * @property {number} total_decisions
 * @property {number | null} avg_confidence 0 to 1
 * @property {Record<string, StrategyTotals>} strategy_performance
 * @property {{high: number, medium: number, low: number}} confidence_distribution
 * @property {Record<string, number>} provider_usage
 * @property {number | null} rate decisions per second over the last minute
 * @property {{total: number | null, priced: number, unpriced: number}} cost dollars, and two counts
 * @property {{count: number, rate: number | null}} errors
 * @property {{avg: number | null, p50: number | null, p95: number | null, p99: number | null}} latency_ms
 * @property {string} timestamp RFC 3339
 */

/** @typedef {"live" | "cache" | "database" | "stale" | "none"} Source where the server's numbers came from */

/**
 * @typedef {Object} Health
 * @property {"ok" | "degraded"} status
 * @property {number} active_connections
 * @property {string} version
 * @property {Record<string, string>} components such as `database`, each `ok`, `off` or `failing`
 * @property {Source} source
 */

/** @typedef {{metrics: Metrics} | {failure: string}} Frame */

const FIELDS = [
  "total_decisions",
  "avg_confidence",
  "strategy_performance",
  "confidence_distribution",
  "provider_usage",
  "rate",
  "cost",
  "errors",
  "latency_ms",
];

/** Seconds between two documents of the stream. */
export const INTERVAL = 1;

/**
 * The address of the stream, `ws` or `wss` as the page is `http` or `https`.
 *
 * @param {string} page the page's own address
 */
export function streamUrl(page) {
  const url = new URL("ws/metrics", page);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = `?fields=${FIELDS.join(",")}&interval=${INTERVAL}`;
  return url.href;
}

/**
 * Read one text frame of the stream. Anything that is not a metrics document is a failure that
 * says so, since the page goes on showing what it had.
 *
 * @param {string} text
 * @returns {Frame}
 */
export function readFrame(text) {
  let document;
  try {
    document = JSON.parse(text);
  } catch {
    return { failure: "The server sent a frame that is not JSON" };
  }
  if (typeof document?.total_decisions === "number") return { metrics: document };
  if (typeof document?.error === "string") return { failure: document.error };
  return { failure: "The server sent a document without metrics" };
}
