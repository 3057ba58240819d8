/** Histories: the request, and how later buckets replace earlier ones. */

import assert from "node:assert/strict";
import test from "node:test";

import { connect } from "../routecast.js";
import { EPOCH, Queue, ScriptedServer, WebSocket } from "./scripted_server.js";

const MINUTE_MS = 60_000;

/** Follow a history. Histories and errors go into queues. */
async function follow(t, view, options = {}) {
  const server = await ScriptedServer.serve(t, options);
  const client = connect(server.url, { firstDelay: 10, longestDelay: 10, WebSocket });
  t.after(() => client.close());
  const histories = new Queue();
  const errors = new Queue();
  const subscription = client.history(view, histories.put, errors.put);
  return { server, client, subscription, histories, errors };
}

/** The next connection, its request, and a function that answers it. */
async function requested(server) {
  const connection = await server.connection();
  connection.hello();
  const message = await connection.next("history");
  const answer = (from, series, { seq = 1, step = 60, id = message.id } = {}) => {
    const points = series[0].count.length;
    connection.send({ type: "history", id, position: { epoch: EPOCH, seq }, step, from, points, series });
  };
  return { connection, message, answer };
}

const minute = (number) => new Date(Date.UTC(2026, 0, 31, 12, number)).toISOString();
const counts = ({ series }) => Object.fromEntries(series.map(({ key, count }) => [key, count]));

test("a history without follow is requested and answered once", async (t) => {
  const view = { from: new Date(0), to: "2026-01-31T00:00:00Z", group_by: "strategy", fields: ["count"], filter: { project: ["a"] } };
  const { server, client, subscription } = await follow(t, view);
  const loop = subscription[Symbol.asyncIterator]();
  const { connection, message, answer } = await requested(server);
  const { id, type, ...rest } = message;
  assert.deepEqual(rest, { ...view, from: "1970-01-01T00:00:00.000Z", points: 300 });
  answer(minute(0), [{ key: "hybrid", count: [1, 2] }]);
  await loop.next();
  assert.deepEqual(await loop.next(), { done: true, value: undefined });
  connection.cut();
  const again = await server.connection();
  client.subscribe();
  assert.equal((await again.next()).type, "subscribe"); // and the history is not requested again
});

test("later buckets replace held ones, and the newest are kept", async (t) => {
  const { server, histories } = await follow(t, { from: minute(0), points: 4, follow: true });
  const { answer } = await requested(server);
  answer(minute(0), [{ key: "all", count: [1, 2, 3], cost: [null, 0.5, 1] }]);
  assert.deepEqual(counts(await histories.next()), { all: [1, 2, 3] });
  answer(minute(2), [{ key: "all", count: [4, 0], cost: [2, null] }], { seq: 2 });
  const { position, step, from, points, series } = await histories.next();
  assert.deepEqual([position.seq, step, from, points], [2, 60, minute(0), 4]);
  assert.deepEqual(series, [{ key: "all", count: [1, 2, 4, 0], cost: [null, 0.5, 2, null] }]);
  answer(minute(3), [{ key: "all", count: [7, 8], cost: [1, 1] }]);
  const moved = await histories.next();
  assert.deepEqual([moved.from, moved.points, counts(moved)], [minute(1), 4, { all: [2, 4, 7, 8] }]);
});

test("a series that begins later was empty before, and one that an update leaves out is empty in it", async (t) => {
  const { server, histories } = await follow(t, { from: minute(0), follow: true });
  const { answer } = await requested(server);
  answer(minute(0), [{ key: "old", count: [1, 2], cost: [1, 2] }]);
  await histories.next();
  answer(minute(1), [{ key: "new", count: [3, 4], cost: [3, 4] }]);
  assert.deepEqual((await histories.next()).series, [
    { key: "old", count: [1, 0, 0], cost: [1, null, null] },
    { key: "new", count: [0, 3, 4], cost: [null, 3, 4] },
  ]);
});

for (const [what, from, options] of [
  ["another step", minute(0), { step: 300 }],
  ["a gap", minute(9), {}],
  ["an earlier beginning", minute(-1), {}],
]) {
  test(`${what} replaces all buckets`, async (t) => {
    const { server, histories } = await follow(t, { from: minute(0), follow: true });
    const { answer } = await requested(server);
    answer(minute(0), [{ key: "all", count: [1, 2] }]);
    await histories.next();
    answer(from, [{ key: "all", count: [9] }], options);
    assert.deepEqual(counts(await histories.next()), { all: [9] });
  });
}

test("after a loss, the client requests the kept buckets and those since", async (t) => {
  const now = Math.floor(Date.now() / MINUTE_MS) * MINUTE_MS;
  const ago = (minutes) => new Date(now - minutes * MINUTE_MS).toISOString();
  const { server, histories } = await follow(t, { from: ago(500), points: 5, follow: true });
  const first = await requested(server);
  assert.equal(first.message.from, ago(500));
  first.answer(ago(9), [{ key: "all", count: [1, 2, 3, 4, 5] }]);
  await histories.next();
  first.connection.cut();
  const second = await requested(server);
  // Four buckets at most, so that the server does not make them longer.
  assert.ok(Date.parse(second.message.from) >= Date.parse(ago(4)) && second.message.points === 5, second.message.from);
  second.answer(ago(5), [{ key: "all", count: [6, 7, 8] }], { seq: 2 });
  const { from, series } = await histories.next();
  assert.deepEqual([from, series], [ago(7), [{ key: "all", count: [3, 4, 6, 7, 8] }]]);
});

test("after a retryable error a history is requested again", async (t) => {
  const { server, histories, errors } = await follow(t, { from: minute(0) });
  const { connection, message, answer } = await requested(server);
  connection.send({ type: "error", id: message.id, code: "unavailable", message: "no database", retryable: true });
  assert.equal((await errors.next()).message, "no database");
  const again = await connection.next("history");
  assert.notEqual(again.id, message.id);
  answer(minute(0), [{ key: "all", count: [1] }], { id: again.id });
  assert.deepEqual(counts(await histories.next()), { all: [1] });
});

test("on the default stream, a history waits and gives one error", async (t) => {
  const view = { from: minute(0), follow: true };
  const { server, client, histories, errors } = await follow(t, view, { v1: false });
  const { code, retryable } = await errors.next();
  assert.deepEqual([code, retryable], ["not_supported", true]);
  // Meanwhile the client gets metrics, and tries routecast.v1 again.
  const totals = new Queue();
  client.subscribe({ interval: 1 }, totals.put);
  for (;;) {
    const connection = await server.connection();
    if (connection.v1) {
      connection.hello();
      const { id } = await connection.next("history");
      connection.send({ type: "history", id, position: { epoch: EPOCH, seq: 1 }, step: 60, from: minute(0), points: 1, series: [{ key: "all", count: [7] }] });
      break;
    }
    if (connection.offered.length > 0) continue; // the client closed it: it is not of routecast.v1
    connection.send({ total_decisions: 3, timestamp: minute(0) });
    await totals.next();
    server.v1 = true;
  }
  assert.deepEqual(counts(await histories.next()), { all: [7] });
  assert.equal(errors.size, 0);
});

test("a history comes although the first handshakes are lost", async (t) => {
  const server = await ScriptedServer.serve(t);
  server.cut = 2;
  const client = connect(server.url, { firstDelay: 10, longestDelay: 10, WebSocket });
  t.after(() => client.close());
  const [histories, errors] = [new Queue(), new Queue()];
  client.history({ from: minute(0) }, histories.put, errors.put);
  const { answer } = await requested(server);
  answer(minute(0), [{ key: "all", count: [1, 2] }]);
  assert.deepEqual(counts(await histories.next()), { all: [1, 2] });
  assert.equal(errors.size, 0);
  assert.deepEqual(server.asked, ["OPTIONS /ws/metrics", "OPTIONS /ws/metrics"]);
});

test("closing a history sends unsubscribe", async (t) => {
  const { server, subscription } = await follow(t, { from: minute(0), follow: true });
  const { connection, message } = await requested(server);
  subscription.close();
  assert.equal((await connection.next("unsubscribe")).id, message.id);
});
