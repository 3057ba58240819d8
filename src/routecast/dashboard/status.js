/** What to say about the connection and the age of the numbers, in words. */

import { formatAge, formatCounted } from "./format.js";

/** @typedef {import("./protocol.js").Health} Health */
/** @typedef {import("./protocol.js").Metrics} Metrics */
/** @typedef {import("./stream.js").StreamState} StreamState */

/**
 * All that the page knows.
 *
 * @typedef {Object} PageState
 * @property {StreamState} stream
 * @property {Metrics | null} metrics the newest good document
 * @property {number} receivedAt when it came, in ms since 1970
 * @property {string | null} failure what the server sent in place of a newer one
 * @property {Health | null} health
 */

/**
 * @typedef {Object} Status
 * @property {string} word
 * @property {string} countdown what follows the word, changing each second
 * @property {"live" | "wait" | "stale"} tone
 * @property {string} reason why these are not the newest numbers; empty when they are
 * @property {boolean} canRetry
 */

const SOURCES = {
  live: ", from live totals",
  cache: ", from the cache",
  database: ", from the database",
  stale: "",
  none: "",
};

/**
 * @param {PageState} page
 * @param {number} now in ms since 1970
 * @returns {Status}
 */
export function describe(page, now) {
  const { stream } = page;
  switch (stream.phase) {
    case "connecting": {
      const [word, reason] = stream.again ? ["Reconnecting", "the connection was lost"] : ["Connecting", ""];
      return { word, countdown: "", tone: "wait", reason, canRetry: stream.again };
    }
    case "waiting": {
      const seconds = Math.max(1, Math.ceil((stream.until - now) / 1_000));
      return { word: "Reconnecting", countdown: ` in ${seconds} s`, tone: "wait", reason: stream.reason, canRetry: true };
    }
    case "refused":
      return stale(stream.barred ? "the server does not let this page in" : stream.reason, "Refused");
    case "silent":
      return stale("the connection is open but silent");
    case "live":
      if (page.failure !== null) return stale(`the server answers “${page.failure}”`, "Stale", false);
      if (page.health?.source === "stale") return stale("the server can show only its last known numbers", "Stale", false);
      return { word: "Live", countdown: "", tone: "live", reason: "", canRetry: false };
  }
}

/**
 * @param {string} reason
 * @param {string} [word]
 * @param {boolean} [canRetry]
 * @returns {Status}
 */
function stale(reason, word = "Stale", canRetry = true) {
  return { word, countdown: "", tone: "stale", reason, canRetry };
}

/**
 * How old the numbers are, and where they are from or why there are no newer ones.
 *
 * @param {PageState} page
 * @param {Status} status
 * @param {number} now in ms since 1970
 */
export function describeAge(page, status, now) {
  if (!page.metrics) return status.reason ? `No numbers yet: ${status.reason}` : "";
  const age = now - page.receivedAt;
  const when = age < 2_000 ? "just now" : `${formatAge(age)} ago`;
  if (status.reason) return `Received ${when}; ${status.reason}`;
  return `Updated ${when}${page.health ? (SOURCES[page.health.source] ?? "") : ""}`;
}

/** @param {Health | null} health */
export function describeHealth(health) {
  if (!health) return "";
  const components = Object.entries(health.components ?? {}).map(([name, state]) => `${name} ${state}`);
  return [`Routecast ${health.version}`, formatCounted(health.active_connections, "open stream"), ...components].join(" · ");
}

/**
 * @param {PageState} page
 * @param {Status} status
 */
export function describeTitle({ metrics }, status) {
  const news = metrics && status.tone === "live" ? formatCounted(metrics.total_decisions, "decision") : status.word;
  return `${news} – Routecast`;
}
