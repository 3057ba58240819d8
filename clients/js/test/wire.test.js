/** The golden messages of tests/wire: what a server says is understood, and nothing else is said. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test from "node:test";

import { connect } from "../routecast.js";
import { mergePatch } from "../subscription.js";
import { Queue, Script, WebSocket } from "./script.js";

const FOLDER = new URL("../../../tests/wire/", import.meta.url);
const GOLDEN = readdirSync(FOLDER)
  .filter((name) => name.endsWith(".json"))
  .map((name) => JSON.parse(readFileSync(new URL(name, FOLDER), "utf8")));

const golden = (type) => GOLDEN.filter(({ message }) => message?.type === type);
const named = (wanted) => GOLDEN.find(({ name }) => name === wanted);

/** A client that follows the default document, and all that comes of it. */
async function follow(t, view) {
  const script = await Script.serve(t);
  const client = connect(script.url, { firstDelay: 10, longestDelay: 10, patience: 50, WebSocket });
  t.after(() => client.close());
  const heard = new Queue();
  client.onState((state) => heard.put({ state, wait: state.at - Date.now() }));
  const subscription = client.subscribe(view, (metrics, frame) => heard.put({ metrics, frame }), (error) => heard.put({ error }));
  const connection = await script.connection();
  const { id, ...asked } = await connection.next("subscribe");
  assert.equal((await heard.next()).state.name, "connecting");
  return { script, client, subscription, connection, id, asked, heard };
}

for (const [i, { before, patch, after }] of named("patches").patches.entries()) {
  test(`patch ${i + 1} of RFC 7396`, () => {
    const kept = structuredClone(before);
    assert.deepEqual(mergePatch(before, patch), after);
    assert.deepEqual(before, kept);
  });
}

for (const { name, message, before, after } of [...golden("snapshot"), ...golden("delta")]) {
  test(`${name} is shown`, async (t) => {
    const { connection, id, heard } = await follow(t);
    if (before) {
      const { position, base } = message;
      connection.send({ ...message, type: "snapshot", id, position: { ...position, seq: base }, data: before });
      assert.deepEqual((await heard.next(({ metrics }) => metrics)).metrics, { ...before, timestamp: message.timestamp });
    }
    connection.send({ ...message, id });
    const { metrics, frame } = await heard.next(({ metrics }) => metrics);
    const { position, source, age_ms, timestamp } = message;
    assert.deepEqual(metrics, { ...(after ?? message.data), timestamp });
    assert.deepEqual(frame, { position, source, age_ms, timestamp });
  });
}

for (const { name, message } of golden("hello")) {
  test(`${name} means connected`, async (t) => {
    const { connection, heard } = await follow(t);
    connection.send(message);
    const { state } = await heard.next(({ state }) => state);
    assert.deepEqual(state, { name: "connected", protocol: "routecast.v1" });
  });
}

for (const { name, message } of golden("error").filter(({ message }) => message.id)) {
  test(`${name} is told`, async (t) => {
    const { connection, id, heard } = await follow(t);
    connection.send({ ...message, id });
    const { code, message: words, retryable } = (await heard.next(({ error }) => error)).error;
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

test("goodbye says when to come back", async (t) => {
  const now = Date.now();
  t.mock.method(Date, "now", () => now); // however slow the machine, a wait is measured as it was chosen
  const { connection, heard } = await follow(t);
  const { message } = named("goodbye");
  connection.send(message);
  connection.close(message.code);
  const { wait } = await heard.next(({ state }) => state?.name === "reconnecting");
  assert.ok(Math.abs(wait - message.reconnect_after_ms) < 10, `${wait}`);
});

test("subscribe is what is said for the default document", async (t) => {
  const { asked } = await follow(t);
  const { id, ...message } = named("subscribe").message;
  assert.deepEqual(asked, message);
});

test("subscribe-all is what is said for all of it, after a loss", async (t) => {
  const { id: _, type, position, ...view } = named("subscribe-all").message;
  const { script, connection, id, asked, heard } = await follow(t, view);
  assert.deepEqual(asked, { type, ...view });
  connection.send({ ...named("snapshot").message, id, position });
  await heard.next(({ metrics }) => metrics);
  connection.cut();
  const { id: again, ...resumed } = await (await script.connection()).next("subscribe");
  assert.deepEqual(resumed, { type, ...view, position });
});

test("unsubscribe is what is said at a subscription's end", async (t) => {
  const { connection, id, subscription } = await follow(t);
  subscription.close();
  assert.deepEqual(await connection.next(), { ...named("unsubscribe").message, id });
});

test("ping is what is said into silence, and pong answers it", async (t) => {
  const { connection, heard } = await follow(t);
  connection.send(named("hello").message);
  for (let i = 0; i < 3; i++) {
    const { id, ...ping } = await connection.next("ping");
    assert.deepEqual({ ...ping, id: "x" }, named("ping").message);
    connection.send({ ...named("pong").message, id });
  }
  assert.equal((await heard.next()).state.name, "connected");
  assert.equal(heard.size, 0);
});
