/**
 * Follow a server, and print each state, document and error as a line of JSON; `--worker` does it in a worker.
 *
 *     node follow.js http://127.0.0.1:8000 '{"fields":["total_decisions"]}' [--worker]
 */

import { Worker, isMainThread, parentPort, workerData } from "node:worker_threads";

import { connect } from "@routecast/client";

const WebSocket = globalThis.WebSocket ?? (await import("ws")).WebSocket;
const print = (line) => console.log(JSON.stringify(line));

function follow(url, view, put) {
  const client = connect(url, { WebSocket, firstDelay: 100, longestDelay: 200 });
  client.onState((state) => put({ state }));
  const error = ({ code, message }) => put({ error: { code, message } });
  if (view.from) client.history(view, (history) => put({ history }), error);
  else client.subscribe(view, (metrics, frame) => put({ metrics, frame }), error);
}

if (!isMainThread) {
  follow(workerData.url, workerData.view, (line) => parentPort.postMessage(line));
} else {
  const [url, view] = process.argv.slice(2);
  const given = { url, view: JSON.parse(view) };
  if (process.argv.includes("--worker")) new Worker(new URL(import.meta.url), { workerData: given }).on("message", print);
  else follow(given.url, given.view, print);
}
