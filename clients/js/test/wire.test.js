/** The golden messages of tests/wire: the client understands those of servers, and sends no others. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test from "node:test";

import { connect } from "../routecast.js";
import { mergePatch } from "../subscription.js";
import { Queue, ScriptedServer, WebSocket } from "./scripted_server.js";

const FOLDER = new URL("../../../tests/wire/", import.meta.url);
const GOLDEN = readdirSync(FOLDER)
  .filter((name) => name.endsWith(".json"))
  .map((name) => JSON.parse(readFileSync(new URL(name, FOLDER), "utf8")));

const golden = (type) => GOLDEN.filter(({ message }) => message?.type === type);
const named = (wanted) => GOLDEN.find(({ name }) => name === wanted);

/** A client that follows a view, with a queue of all states, documents and errors. */
async function follow(t, view) {
  const server = await ScriptedServer.serve(t);
  const client = connect(server.url, { firstDelay: 10, longestDelay: 10, patience: 50, WebSocket });
  t.after(() => client.close());
  const events = new Queue();
  client.onState((state) => events.put({ state, wait: state.at - Date.now() }));
  const subscription = client.subscribe(view, (metrics, frame) => events.put({ metrics, frame }), (error) => events.put({ error }));
  const connection = await server.connection();
  const { id, ...requested } = await connection.next("subscribe");
  assert.equal((await events.next()).state.name, "connecting");
  return { server, client, subscription, connection, id, requested, events };
}

for (const [i, { before, patch, after }] of named("patches").patches.entries()) {
  test(`patch ${i + 1} of RFC 7396`, () => {
    const kept = structuredClone(before);
    assert.deepEqual(mergePatch(before, patch), after);
    assert.deepEqual(before, kept);
  });
}

for (const { name, message, before, after } of [...golden("snapshot"), ...golden("delta")]) {
  test(`the listener gets the document of ${name}`, async (t) => {
    const { connection, id, events } = await follow(t);
    if (before) {
      const { position, base } = message;
      connection.send({ ...message, type: "snapshot", id, position: { ...position, seq: base }, data: before });
      assert.deepEqual((await events.next(({ metrics }) => metrics)).metrics, { ...before, timestamp: message.timestamp });
    }
    connection.send({ ...message, id });
    const { metrics, frame } = await events.next(({ metrics }) => metrics);
    const { position, source, age_ms, timestamp } = message;
    assert.deepEqual(metrics, { ...(after ?? message.data), timestamp });
    assert.deepEqual(frame, { position, source, age_ms, timestamp });
  });
}

for (const { name, message } of golden("hello")) {
  test(`after ${name} the client is connected`, async (t) => {
    const { connection, events } = await follow(t);
    connection.send(message);
    const { state } = await events.next(({ state }) => state);
    assert.deepEqual(state, { name: "connected", protocol: "routecast.v1" });
  });
}

for (const { name, message } of golden("error").filter(({ message }) => message.id)) {
  test(`the listener gets ${name}`, async (t) => {
    const { connection, id, events } = await follow(t);
    connection.send({ ...message, id });
    const { code, message: words, retryable } = (await events.next(({ error }) => error)).error;
    assert.deepEqual({ code, message: words, retryable }, { code: message.code, message: message.message, retryable: message.retryable });
  });
}

test("error-no-id is written to the console", async (t) => {
  const written = new Queue();
  t.mock.method(console, "error", written.put);
  const { connection } = await follow(t);
  const { message } = named("error-no-id");
  connection.send(message);
  assert.equal(await written.next(), `Routecast: ${message.message}`);
});

test("goodbye says when to reconnect", async (t) => {
  const now = Date.now();
  t.mock.method(Date, "now", () => now); // a slow machine does not change a measured delay
  const { connection, events } = await follow(t);
  const { message } = named("goodbye");
  connection.send(message);
  connection.close(message.code);
  const { wait } = await events.next(({ state }) => state?.name === "reconnecting");
  assert.ok(Math.abs(wait - message.reconnect_after_ms) < 10, `${wait}`);
});

test("the client sends subscribe for the default document", async (t) => {
  const { requested } = await follow(t);
  const { id, ...message } = named("subscribe").message;
  assert.deepEqual(requested, message);
});

test("the client sends subscribe-all for all parts of a view, after a loss", async (t) => {
  const { id: _, type, position, ...view } = named("subscribe-all").message;
  const { server, connection, id, requested, events } = await follow(t, view);
  assert.deepEqual(requested, { type, ...view });
  connection.send({ ...named("snapshot").message, id, position });
  await events.next(({ metrics }) => metrics);
  connection.cut();
  const { id: again, ...resumed } = await (await server.connection()).next("subscribe");
  assert.deepEqual(resumed, { type, ...view, position });
});

test("the client sends unsubscribe when a subscription ends", async (t) => {
  const { connection, id, subscription } = await follow(t);
  subscription.close();
  assert.deepEqual(await connection.next(), { ...named("unsubscribe").message, id });
});

test("the client sends ping to a silent server, and pong keeps the connection", async (t) => {
  const { connection, events } = await follow(t);
  connection.send(named("hello").message);
  for (let i = 0; i < 3; i++) {
    const { id, ...ping } = await connection.next("ping");
    assert.deepEqual({ ...ping, id: "x" }, named("ping").message);
    connection.send({ ...named("pong").message, id });
  }
  assert.equal((await events.next()).state.name, "connected");
  assert.equal(events.size, 0);
});
