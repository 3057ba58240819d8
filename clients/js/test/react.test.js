/** `useMetrics` in real React, against a scripted server. */

import assert from "node:assert/strict";
import test from "node:test";

import { StrictMode, createElement } from "react";
import { create } from "react-test-renderer";

import { useMetrics } from "../react.js";
import { Queue, ScriptedServer, WebSocket } from "./scripted_server.js";

const QUICK = { firstDelay: 20, longestDelay: 50, WebSocket };

/** A component that puts the values of `useMetrics` into a queue. */
function Show({ url, shown, ...view }) {
  shown.put(useMetrics(url, { ...view, ...QUICK }));
  return null;
}

/** Render components of these props, in React's strict mode, until the test ends. */
function render(t, ...all) {
  const tree = (props) => createElement(StrictMode, null, ...props.map((each, key) => createElement(Show, { key, ...each })));
  const root = create(tree(all), { unstable_isConcurrent: true, unstable_strictMode: true });
  t.after(() => root.unmount());
  return { root, update: (...next) => root.update(tree(next)) };
}

const total = (count) => ({ metrics }) => metrics?.total_decisions === count;

test("a component shows documents and states", async (t) => {
  const server = await ScriptedServer.serve(t);
  const shown = new Queue();
  render(t, { url: server.url, shown, fields: ["total_decisions"] });
  assert.deepEqual(await shown.next(), { metrics: null, frame: null, state: { name: "connecting", again: false }, error: null });
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, { total_decisions: 1 });
  const { state, frame } = await shown.next(total(1));
  assert.deepEqual([state.name, frame.position.seq], ["connected", 1]);
  connection.send({ type: "error", id, code: "unavailable", message: "Failed to fetch metrics", retryable: true });
  const failed = await shown.next(({ error }) => error !== null);
  assert.deepEqual([failed.error.message, failed.metrics.total_decisions], ["Failed to fetch metrics", 1]);
  connection.cut();
  // React renders the newest state: it may skip "reconnecting", which lasts a millisecond.
  await shown.next(({ state }) => state.name !== "connected");
  const again = await server.subscriber();
  again.connection.snapshot(again.id, 2, { total_decisions: 2 });
  assert.equal((await shown.next(total(2))).error, null);
});

test("components of one server share a connection, and those of one view a subscription", async (t) => {
  const server = await ScriptedServer.serve(t);
  const [a, b, c] = [new Queue(), new Queue(), new Queue()];
  const { url } = server;
  const shown = [{ url, shown: a }, { url, shown: b }, { url, shown: c, window: "1h" }];
  const { update } = render(t, ...shown);
  const { connection, id } = await server.subscriber();
  const other = await connection.next("subscribe");
  assert.equal(other.window, "1h");
  connection.snapshot(id, 1, { total_decisions: 1 });
  connection.snapshot(other.id, 1, { total_decisions: 2 });
  await Promise.all([a.next(total(1)), b.next(total(1)), c.next(total(2))]);
  // Another request would have come before this one.
  update(...shown, { url, shown: new Queue(), window: "24h" });
  assert.equal((await connection.next()).window, "24h");
  assert.equal(server.connections, 0);
});

test("another view subscribes on the same connection, and the old subscription ends", async (t) => {
  const server = await ScriptedServer.serve(t);
  const shown = new Queue();
  const { update } = render(t, { url: server.url, shown, window: "1h" });
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, { total_decisions: 1 });
  await shown.next(total(1));
  update({ url: server.url, shown, window: "24h" });
  const next = await connection.next("subscribe");
  assert.equal(next.window, "24h");
  assert.equal((await connection.next("unsubscribe")).id, id);
});

test("a component that unmounts and soon mounts again keeps its connection", async (t) => {
  const server = await ScriptedServer.serve(t);
  const shown = new Queue();
  const { update } = render(t, { url: server.url, shown });
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, { total_decisions: 1 });
  await shown.next(total(1));
  update();
  await new Promise((resolve) => setTimeout(resolve, 50)); // as between two pages
  update({ url: server.url, shown });
  assert.equal((await shown.next()).metrics.total_decisions, 1);
  connection.delta(id, 1, 2, { total_decisions: 2 });
  await shown.next(total(2));
  assert.equal(server.connections, 0);
});

test("when the last component is unmounted, the connection closes", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { root } = render(t, { url: server.url, shown: new Queue() });
  const { connection } = await server.subscriber();
  root.unmount();
  const [code] = await connection.ended;
  assert.equal(code, 1000);
});
