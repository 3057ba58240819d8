/** Texts about the connection, the age of the numbers, and the server's health. */

import { formatAge, formatCount, formatCounted } from "./format.js";

/** @typedef {import("./page_view.js").Health} Health */
/** @typedef {import("./page_view.js").Metrics} Metrics */
/** @typedef {import("./page_view.js").Source} Source */
/** @typedef {import("./client/routecast.js").State} State */

/**
 * Everything that the page knows.
 *
 * @typedef {Object} PageState
 * @property {State} stream
 * @property {boolean} current whether a document has come over the present connection
 * @property {Metrics | null} metrics the newest good document
 * @property {Source | null} source where it came from, if the server said so
 * @property {number} receivedAt when it came, in ms since 1970
 * @property {string | null} failure what the server sent in place of a newer one
 * @property {Health | null} health
 * @property {boolean} isSignedIn
 * @property {string} problem why the browser is not signed in; empty if there is nothing to say
 */

/**
 * @typedef {Object} Status
 * @property {string} word
 * @property {string} countdown what follows the word, changing each second
 * @property {"live" | "wait" | "stale"} tone
 * @property {string} reason why these are not the newest numbers; empty when they are
 * @property {boolean} canRetry
 */

const UNAUTHENTICATED = [401, 4401];
const FORBIDDEN = [403, 4403];

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
  switch (stream.name) {
    case "connecting":
      return connecting(stream.again);
    case "reconnecting": {
      const seconds = Math.max(1, Math.ceil((stream.at - now) / 1_000));
      return { word: "Reconnecting", countdown: ` in ${seconds} s`, tone: "wait", reason: stream.reason, canRetry: true };
    }
    case "closed":
      if (needsSignIn(page)) return stale("", "Sign in", false); // the form says why
      return stale(isForbidden(page) ? "the server refuses this page" : stream.reason, "Refused");
    case "stale":
      return stale(stream.reason);
    case "connected":
      if (page.failure !== null) return stale(`the server answers “${page.failure}”`, "Stale", false);
      if (sourceOf(page) === "stale") return stale("the server can show only its last known numbers", "Stale", false);
      if (!page.current) return connecting(page.metrics !== null);
      return { word: "Live", countdown: "", tone: "live", reason: "", canRetry: false };
  }
}

/**
 * @param {boolean} again
 * @returns {Status}
 */
function connecting(again) {
  const [word, reason] = again ? ["Reconnecting", "the connection was lost"] : ["Connecting", ""];
  return { word, countdown: "", tone: "wait", reason, canRetry: again };
}

/**
 * Whether the server needs a credential.
 *
 * @param {State} stream
 */
export function isUnauthenticated(stream) {
  return refusedWith(stream, UNAUTHENTICATED);
}

/**
 * Whether the server needs a token or an API key, or another one than it was given.
 *
 * @param {PageState} page
 */
export function needsSignIn({ stream, isSignedIn }) {
  return isUnauthenticated(stream) || (isSignedIn && refusedWith(stream, FORBIDDEN));
}

/**
 * Whether the server refuses this page because of its address.
 *
 * @param {PageState} page
 */
export function isForbidden({ stream, isSignedIn }) {
  return !isSignedIn && refusedWith(stream, FORBIDDEN);
}

/**
 * @param {State} stream
 * @param {number[]} codes close codes and statuses
 */
function refusedWith(stream, codes) {
  return stream.name === "closed" && codes.includes(stream.status ?? stream.code ?? 0);
}

/**
 * Whether the server sends changes only, so that silence means that nothing changed.
 *
 * @param {State} stream
 */
export function sendsChangesOnly(stream) {
  return stream.name === "connected" && stream.protocol === "routecast.v1";
}

/** @param {PageState} page */
function sourceOf({ source, health }) {
  return source ?? health?.source ?? "none";
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
 * The age of the numbers, and their source, or the reason why there are no newer ones.
 *
 * @param {PageState} page
 * @param {Status} status
 * @param {number} now in ms since 1970
 */
export function describeAge(page, status, now) {
  if (needsSignIn(page)) return "";
  if (!page.metrics) return status.reason ? `No numbers yet: ${status.reason}` : "";
  const age = now - page.receivedAt;
  const recent = age < 2_000;
  if (status.reason) return `Received ${recent ? "just now" : `${formatAge(age)} ago`}; ${status.reason}`;
  const quiet = sendsChangesOnly(page.stream) ? `No change for ${formatAge(age)}` : `Updated ${formatAge(age)} ago`;
  return `${recent ? "Updated just now" : quiet}${SOURCES[sourceOf(page)] ?? ""}`;
}

/** @param {Health | null} health */
export function describeHealth(health) {
  if (!health) return "";
  const components = Object.entries(health.components ?? {}).map(([name, state]) => `${name} ${state}`);
  const { version, active_connections } = health;
  const streams = active_connections === undefined ? [] : [formatCounted(active_connections, "open stream")];
  return [`Routecast ${version}`, ...streams, ...components].join(" · ");
}

/** @type {Record<string, string>} */
const PLURALS = {
  project: "projects",
  strategy: "strategies",
  provider: "providers",
  model: "models",
  combination: "combinations of names",
};

/**
 * A text about the limits of names that are reached; empty if none is.
 *
 * @param {Health | null} health
 */
export function describeLimits(health) {
  const full = Object.entries(health?.full_names ?? {});
  if (full.length === 0) return "";
  const reached = full.map(([part, limit]) => `${formatCount(limit)} ${PLURALS[part] ?? part}`);
  return `Limit of names reached: ${reached.join(", ")}. New ones count as “other”.`;
}

/**
 * @param {PageState} page
 * @param {Status} status
 */
export function describeTitle({ metrics }, status) {
  const news = metrics && status.tone === "live" ? formatCounted(metrics.total_decisions, "decision") : status.word;
  return `${news} – Routecast`;
}
