/**
 * Print a line for each metrics document of a Routecast server.
 *
 *     node watch.mjs "http://127.0.0.1:8000?interval=1" --count 10
 */

import { parseArgs } from "node:util";

import { RoutecastStream } from "./metrics-client.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { count: { type: "string" }, "first-delay": { type: "string", default: "5" } },
});
const url = positionals[0] ?? "http://127.0.0.1:8000";
let left = Number(values.count ?? Infinity);

/** @type {import("./metrics-client.mjs").StreamOptions} */
const options = {
  firstDelayMs: 1_000 * Number(values["first-delay"]),
  onMetrics({ timestamp, total_decisions, avg_confidence, strategy_performance }) {
    const counts = Object.entries(strategy_performance).map(([name, { count }]) => `${JSON.stringify(name)} ${count}`);
    const confidence = avg_confidence === null ? "unknown" : avg_confidence.toFixed(3);
    console.log(`${timestamp}  ${total_decisions} decisions, confidence ${confidence}: ${counts.join(", ") || "none yet"}`);
    if (--left <= 0) stream.close();
  },
  onError: (message) => console.error(message),
  onState(state, detail) {
    if (state === "waiting" || state === "refused") console.error(detail);
    if (state === "refused") process.exitCode = 1;
  },
};

let stream;
try {
  stream = new RoutecastStream(url, options);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
