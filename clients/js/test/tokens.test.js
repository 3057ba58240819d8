/** The client and its token, by the table of all clients: a server announces its expiry, and refuses it. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { connect } from "../routecast.js";
import { Queue, ScriptedServer, WebSocket } from "./scripted_server.js";

const FOLDER = new URL("../../../tests/wire/", import.meta.url);
const read = (name) => JSON.parse(readFileSync(new URL(name, FOLDER), "utf8"));
const { message: EXPIRING } = read("token-expiring.json");

/** Longer than a test, so that what comes at once is told from what waits. */
const LONG_MS = 100_000;

/** A text, or a function that returns new tokens, or always the same one. */
function tokenOf(kind) {
  let calls = 0;
  return { text: "t1", same: () => "t1", function: async () => `t${++calls}` }[kind];
}

const protocolOf = (token) => `routecast.bearer.${Buffer.from(token).toString("base64url")}`;

/** Connect until the test ends, and wait for the first document. */
async function follow(t, token) {
  t.mock.method(Math, "random", () => 1); // the longest delays
  const server = await ScriptedServer.serve(t);
  const client = connect(server.url, { firstDelay: LONG_MS, longestDelay: LONG_MS, token, WebSocket });
  t.after(() => client.close());
  const [states, documents] = [new Queue(), new Queue()];
  client.onState((state) => states.put(state));
  const subscription = client.subscribe({}, documents.put, () => {});
  const { connection, id } = await server.subscriber();
  assert.equal(connection.offered[1], protocolOf("t1"));
  connection.snapshot(id, 1, { total_decisions: 1 });
  await documents.next();
  return { server, subscription, connection, id, states, documents };
}

/** Let a client meet an event; return its behaviour in the words of the table. */
async function outcome({ event, does }, { server, subscription, connection, id, states, documents }) {
  if (event === "token_expiring") {
    connection.send(EXPIRING);
    connection.snapshot(id, 2, { total_decisions: 2 });
    await documents.next();
    await new Promise((resolve) => setImmediate(resolve)); // after the function's promise
    subscription.close();
    const { type, token } = await connection.next();
    if (type === "refresh") assert.equal(token, "t2");
    return type === "refresh" ? "refresh" : "nothing";
  }
  connection.close(4401, "expired");
  if (event === "refused again") {
    const next = await server.connection();
    assert.equal(next.offered[1], protocolOf("t2"));
    next.hello();
    await next.next("subscribe");
    next.close(4401, "again");
    const { at } = await states.next(({ name, reason }) => name === "reconnecting" && reason.includes("again"));
    return at - Date.now() > LONG_MS / 2 ? "retry" : "at_once";
  }
  if (does === "at_once") assert.equal((await server.connection()).offered[1], protocolOf("t2"));
  else await states.next(({ name }) => name === "closed");
  return server.connections === 0 ? does : "more than that";
}

for (const row of read("answers.json").tokens) {
  test(`${row.token} ${row.event}: ${row.does}`, async (t) => {
    const { token } = row;
    assert.equal(await outcome(row, await follow(t, tokenOf(token))), row.does);
  });
}
