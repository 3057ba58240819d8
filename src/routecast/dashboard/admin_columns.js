/** What the tables of nodes and connections show, and how. */

import { UNKNOWN, formatAge, formatBytes, formatCount, formatLatency, formatName, formatRate, formatShare } from "./format.js";

/** @typedef {import("./admin_api.js").OpenConnection} OpenConnection */
/** @typedef {import("./admin_api.js").ClosedConnection} ClosedConnection */
/** @typedef {import("./admin_api.js").Connection} Connection */
/** @typedef {import("./admin_api.js").NodeSummary} NodeSummary */

/** @typedef {NodeSummary & {cpu: number | null, rate: number | null, byteRate: number | null, behind: number | null}} NodeRow */

/** Close codes of normal ends: the client is done, or leaves. */
const NORMAL = new Set([1000, 1001, 1005]);

/** Bus lag beyond this, in seconds, is worth a look; and so is a node this many positions behind. */
const LATE_SECONDS = 2;
const FAR_BEHIND = 100;

const PROTOCOLS = /** @type {Record<string, string>} */ ({
  default: "default",
  sse: "events",
  "routecast.v1.json": "v1 json",
  "routecast.v1.msgpack": "v1 msgpack",
});

/** @param {string} protocol */
export const formatProtocol = (protocol) => PROTOCOLS[protocol] ?? protocol;

/** @param {{subject: string}} row */
export const formatSubject = ({ subject }) => formatName(subject) || "anonymous";

/**
 * @param {string} from RFC 3339
 * @param {string | number} to RFC 3339, or ms since 1970
 */
export const formatBetween = (from, to) => formatAge((typeof to === "number" ? to : Date.parse(to)) - Date.parse(from));

/** The server's time now, in ms since 1970, which rows are shown at. */
let now = Date.now();

/** @param {string} at RFC 3339 */
export function setNow(at) {
  const time = Date.parse(at);
  if (!Number.isNaN(time)) now = time;
}

export const serverNow = () => now;

/** @type {import("./admin_table.js").Column<Connection>[]} */
const shared = [
  { name: "subject", heading: "Subject", text: formatSubject, tone: (row) => (row.subject ? "" : "quiet") },
  { name: "address", heading: "Address", text: (row) => row.address },
  { name: "client", heading: "Client", text: (row) => formatName(row.client) || UNKNOWN, title: (row) => formatName(row.client) },
  { name: "protocol", heading: "Protocol", text: (row) => formatProtocol(row.protocol) },
  { name: "node", heading: "Node", text: (row) => row.node },
];

const bytes = /** @type {import("./admin_table.js").Column<Connection>} */ ({
  name: "bytes",
  heading: "Sent",
  kind: "number",
  text: (row) => formatBytes(row.bytes),
  title: (row) => `${formatCount(row.messages)} messages`,
});

/** @param {Connection} row bytes that patches and compression saved, as far as that is known */
export const savedBytes = (row) => row.saved_by_patches + (row.saved_by_compression ?? 0);

/** @param {Connection} row */
export function formatSaved({ saved_by_patches: patches, saved_by_compression: compression }) {
  const compressed = compression == null ? "compression is not known" : `${formatBytes(compression)} by compression`;
  return `${formatBytes(patches)} by patches, ${compressed}`;
}

const saved = /** @type {import("./admin_table.js").Column<Connection>} */ ({
  name: "saved",
  heading: "Saved",
  kind: "number",
  text: (row) => formatBytes(savedBytes(row)),
  title: formatSaved,
  tone: (row) => (savedBytes(row) ? "" : "quiet"),
});

/** @type {import("./admin_table.js").Column<OpenConnection>[]} */
export const OPEN_COLUMNS = [
  ...shared,
  {
    name: "age",
    heading: "Age",
    kind: "number",
    sorts: ["newest", "start"],
    text: (row) => formatBetween(row.started, now),
    title: (row) => row.started,
  },
  { name: "views", heading: "Views", kind: "number", text: (row) => formatCount(row.subscriptions.length) },
  { ...bytes, sorts: ["bytes"] },
  saved,
  {
    name: "conflated",
    heading: "Conflated",
    kind: "number",
    text: (row) => formatCount(row.conflated),
    tone: (row) => (row.conflated ? "" : "quiet"),
  },
  {
    name: "lag",
    heading: "Lag",
    kind: "number",
    sorts: ["lag"],
    text: (row) => formatCount(row.lag),
    tone: (row) => (row.lag ? "" : "quiet"),
  },
  {
    name: "trip",
    heading: "Round trip",
    kind: "number",
    sorts: ["round_trip"],
    text: (row) => formatLatency(row.round_trip_ms),
    tone: (row) => (row.round_trip_ms == null ? "quiet" : ""),
  },
];

/** @type {import("./admin_table.js").Column<ClosedConnection>[]} */
export const CLOSED_COLUMNS = [
  ...shared,
  { name: "age", heading: "Ended", kind: "number", text: (row) => `${formatBetween(row.ended, now)} ago`, title: (row) => row.ended },
  { name: "lasted", heading: "Lasted", kind: "number", text: (row) => formatBetween(row.started, row.ended) },
  bytes,
  saved,
  { name: "code", heading: "Code", kind: "number", text: (row) => String(row.code), tone: (row) => (NORMAL.has(row.code) ? "quiet" : "bad") },
  { name: "reason", heading: "Reason", text: (row) => row.reason, title: (row) => row.reason },
];

/** @type {import("./admin_table.js").Column<NodeRow>[]} */
export const NODE_COLUMNS = [
  { name: "node", heading: "Node", text: (row) => row.node, title: () => "Show only its connections" },
  { name: "host", heading: "Host", text: (row) => `${row.host} · ${row.pid}`, title: (row) => `${row.host}, process ${row.pid}` },
  { name: "role", heading: "Role", text: (row) => row.role },
  { name: "version", heading: "Version", text: (row) => row.version },
  { name: "up", heading: "Up", kind: "number", text: (row) => formatBetween(row.started, row.at) },
  { name: "streams", heading: "Streams", kind: "number", text: (row) => formatCount(row.connections) },
  { name: "cpu", heading: "CPU", kind: "number", text: (row) => formatShare(row.cpu), tone: (row) => ((row.cpu ?? 0) > 0.9 ? "bad" : "") },
  { name: "memory", heading: "Memory", kind: "number", text: (row) => formatBytes(row.memory_bytes) },
  { name: "rate", heading: "Messages/s", kind: "number", text: (row) => formatRate(row.rate) },
  { name: "byte-rate", heading: "Bytes/s", kind: "number", text: (row) => formatBytes(row.byteRate) },
  { name: "queue", heading: "Queue", kind: "number", text: (row) => formatCount(row.queue) },
  {
    name: "position",
    heading: "Position",
    kind: "number",
    text: (row) => formatCount(row.position?.seq),
    title: (row) => (row.behind ? `${formatCount(row.behind)} behind` : ""),
    tone: (row) => ((row.behind ?? 0) > FAR_BEHIND ? "bad" : ""),
  },
  {
    name: "bus",
    heading: "Bus lag",
    kind: "number",
    text: (row) => (row.bus_lag_seconds == null ? UNKNOWN : formatLatency(row.bus_lag_seconds * 1_000)),
    tone: (row) => ((row.bus_lag_seconds ?? 0) > LATE_SECONDS ? "bad" : ""),
  },
];

/** Turns counts of nodes into rates, from one answer to the next. */
export class NodeRates {
  /** @type {Map<string, NodeRow>} */
  #rows = new Map();

  /**
   * @param {NodeSummary[]} nodes
   * @returns {NodeRow[]}
   */
  rows(nodes) {
    const newest = Math.max(0, ...nodes.map((node) => node.position?.seq ?? 0));
    const rows = nodes.map((node) => ({ ...node, ...this.#rates(node), behind: node.position ? newest - node.position.seq : null }));
    this.#rows = new Map(rows.map((row) => [row.node, row]));
    return rows;
  }

  /** @param {NodeSummary} node */
  #rates(node) {
    const before = this.#rows.get(node.node);
    const seconds = before ? (Date.parse(node.at) - Date.parse(before.at)) / 1_000 : 0;
    if (!before) return { cpu: null, rate: null, byteRate: null };
    // Another node's report may be the same as a second ago.
    if (seconds < 0.2) return { cpu: before.cpu, rate: before.rate, byteRate: before.byteRate, ...kept(before) };
    /** @param {number} difference */
    const per = (difference) => Math.max(0, difference) / seconds;
    return {
      cpu: per(node.cpu_seconds - before.cpu_seconds),
      rate: per(node.messages - before.messages),
      byteRate: per(node.bytes - before.bytes),
    };
  }
}

/**
 * What the next rate is counted from.
 *
 * @param {NodeSummary} before
 */
function kept({ at, cpu_seconds, messages, bytes: sent }) {
  return { at, cpu_seconds, messages, bytes: sent };
}
