/** The past: what is asked for, and how buckets that come later take their places. */

import assert from "node:assert/strict";
import test from "node:test";

import { connect } from "../routecast.js";
import { EPOCH, Queue, Script, WebSocket } from "./script.js";

const MINUTE_MS = 60_000;

/** Follow a history; what comes goes into a queue. */
async function follow(t, view, options = {}) {
  const script = await Script.serve(t, options);
  const client = connect(script.url, { firstDelay: 10, longestDelay: 10, WebSocket });
  t.after(() => client.close());
  const told = new Queue();
  const errors = new Queue();
  const subscription = client.history(view, told.put, errors.put);
  return { script, client, subscription, told, errors };
}

/** The next connection, and what is asked of it. */
async function asked(script) {
  const connection = await script.connection();
  connection.hello();
  const message = await connection.next("history");
  const tell = (from, series, { seq = 1, step = 60, id = message.id } = {}) => {
    const points = series[0].count.length;
    connection.send({ type: "history", id, position: { epoch: EPOCH, seq }, step, from, points, series });
  };
  return { connection, message, tell };
}

const minute = (number) => new Date(Date.UTC(2026, 0, 31, 12, number)).toISOString();
const counts = ({ series }) => Object.fromEntries(series.map(({ key, count }) => [key, count]));

test("the past is asked for once, and told once", async (t) => {
  const view = { from: new Date(0), to: "2026-01-31T00:00:00Z", group_by: "strategy", fields: ["count"], filter: { project: ["a"] } };
  const { script, client, subscription } = await follow(t, view);
  const loop = subscription[Symbol.asyncIterator]();
  const { connection, message, tell } = await asked(script);
  const { id, type, ...rest } = message;
  assert.deepEqual(rest, { ...view, from: "1970-01-01T00:00:00.000Z", points: 300 });
  tell(minute(0), [{ key: "hybrid", count: [1, 2] }]);
  await loop.next();
  assert.deepEqual(await loop.next(), { done: true, value: undefined });
  connection.cut();
  const again = await script.connection();
  client.subscribe();
  assert.equal((await again.next()).type, "subscribe"); // and the past is not
});

test("buckets told later take the places of those held, and the newest are kept", async (t) => {
  const { script, told } = await follow(t, { from: minute(0), points: 4, follow: true });
  const { tell } = await asked(script);
  tell(minute(0), [{ key: "all", count: [1, 2, 3], cost: [null, 0.5, 1] }]);
  assert.deepEqual(counts(await told.next()), { all: [1, 2, 3] });
  tell(minute(2), [{ key: "all", count: [4, 0], cost: [2, null] }], { seq: 2 });
  const { position, step, from, points, series } = await told.next();
  assert.deepEqual([position.seq, step, from, points], [2, 60, minute(0), 4]);
  assert.deepEqual(series, [{ key: "all", count: [1, 2, 4, 0], cost: [null, 0.5, 2, null] }]);
  tell(minute(3), [{ key: "all", count: [7, 8], cost: [1, 1] }]);
  const moved = await told.next();
  assert.deepEqual([moved.from, moved.points, counts(moved)], [minute(1), 4, { all: [2, 4, 7, 8] }]);
});

test("a series that comes later was empty before, and one that is not told is empty now", async (t) => {
  const { script, told } = await follow(t, { from: minute(0), follow: true });
  const { tell } = await asked(script);
  tell(minute(0), [{ key: "old", count: [1, 2], cost: [1, 2] }]);
  await told.next();
  tell(minute(1), [{ key: "new", count: [3, 4], cost: [3, 4] }]);
  assert.deepEqual((await told.next()).series, [
    { key: "old", count: [1, 0, 0], cost: [1, null, null] },
    { key: "new", count: [0, 3, 4], cost: [null, 3, 4] },
  ]);
});

for (const [what, from, options] of [
  ["longer buckets", minute(0), { step: 300 }],
  ["a gap", minute(9), {}],
  ["an earlier beginning", minute(-1), {}],
]) {
  test(`${what} take the place of all`, async (t) => {
    const { script, told } = await follow(t, { from: minute(0), follow: true });
    const { tell } = await asked(script);
    tell(minute(0), [{ key: "all", count: [1, 2] }]);
    await told.next();
    tell(from, [{ key: "all", count: [9] }], options);
    assert.deepEqual(counts(await told.next()), { all: [9] });
  });
}

test("after a loss, what is held is told again, and what came meanwhile", async (t) => {
  const now = Math.floor(Date.now() / MINUTE_MS) * MINUTE_MS;
  const ago = (minutes) => new Date(now - minutes * MINUTE_MS).toISOString();
  const { script, told } = await follow(t, { from: ago(500), points: 5, follow: true });
  const first = await asked(script);
  assert.equal(first.message.from, ago(500));
  first.tell(ago(9), [{ key: "all", count: [1, 2, 3, 4, 5] }]);
  await told.next();
  first.connection.cut();
  const second = await asked(script);
  // Four buckets at most, so that the server does not make them longer.
  assert.ok(Date.parse(second.message.from) >= Date.parse(ago(4)) && second.message.points === 5, second.message.from);
  second.tell(ago(5), [{ key: "all", count: [6, 7, 8] }], { seq: 2 });
  const { from, series } = await told.next();
  assert.deepEqual([from, series], [ago(7), [{ key: "all", count: [3, 4, 6, 7, 8] }]]);
});

test("a history that cannot be told now is asked for again", async (t) => {
  const { script, told, errors } = await follow(t, { from: minute(0) });
  const { connection, message, tell } = await asked(script);
  connection.send({ type: "error", id: message.id, code: "unavailable", message: "no database", retryable: true });
  assert.equal((await errors.next()).message, "no database");
  const again = await connection.next("history");
  assert.notEqual(again.id, message.id);
  tell(minute(0), [{ key: "all", count: [1] }], { id: again.id });
  assert.deepEqual(counts(await told.next()), { all: [1] });
});

test("while there is the default stream alone a history waits, and says so once", async (t) => {
  const view = { from: minute(0), follow: true };
  const { script, client, told, errors } = await follow(t, view, { v1: false });
  const { code, retryable } = await errors.next();
  assert.deepEqual([code, retryable], ["not_supported", true]);
  // Metrics are read meanwhile; routecast.v1 is looked for beside them.
  const totals = new Queue();
  client.subscribe({ interval: 1 }, totals.put);
  for (;;) {
    const connection = await script.connection();
    if (connection.v1) {
      connection.hello();
      const { id } = await connection.next("history");
      connection.send({ type: "history", id, position: { epoch: EPOCH, seq: 1 }, step: 60, from: minute(0), points: 1, series: [{ key: "all", count: [7] }] });
      break;
    }
    if (connection.offered.length > 0) continue; // the client did not take it for one of routecast.v1
    connection.send({ total_decisions: 3, timestamp: minute(0) });
    await totals.next();
    script.v1 = true;
  }
  assert.deepEqual(counts(await told.next()), { all: [7] });
  assert.equal(errors.size, 0);
});

test("a history comes though the first handshakes are lost on the way", async (t) => {
  const script = await Script.serve(t);
  script.cut = 2;
  const client = connect(script.url, { firstDelay: 10, longestDelay: 10, WebSocket });
  t.after(() => client.close());
  const [told, errors] = [new Queue(), new Queue()];
  client.history({ from: minute(0) }, told.put, errors.put);
  const { tell } = await asked(script);
  tell(minute(0), [{ key: "all", count: [1, 2] }]);
  assert.deepEqual(counts(await told.next()), { all: [1, 2] });
  assert.equal(errors.size, 0);
  assert.deepEqual(script.asked, ["OPTIONS /ws/metrics", "OPTIONS /ws/metrics"]);
});

test("leaving a history is said", async (t) => {
  const { script, subscription } = await follow(t, { from: minute(0), follow: true });
  const { connection, message } = await asked(script);
  subscription.close();
  assert.equal((await connection.next("unsubscribe")).id, message.id);
});
