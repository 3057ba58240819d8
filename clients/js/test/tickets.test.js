/** Tickets in place of a token: for each attempt to connect, and for what can only open an address. */

import assert from "node:assert/strict";
import test from "node:test";

import { RoutecastError, connect, fetchTicket } from "../routecast.js";
import { Queue, ScriptedServer, WebSocket } from "./scripted_server.js";

const PROBLEM = { title: "Unauthorized", status: 401, detail: "it has expired" };

/** Connect with tickets until the test ends. */
function follow(t, server, token) {
  const client = connect(server.url, { firstDelay: 1, longestDelay: 1, token, tickets: true, WebSocket });
  t.after(() => client.close());
  const states = new Queue();
  client.onState(states.put);
  client.subscribe({}, () => {}, () => {});
  return states;
}

test("each attempt to connect has its own ticket, and no token", async (t) => {
  const server = await ScriptedServer.serve(t);
  follow(t, server, "secret");
  for (const number of [1, 2]) {
    const { connection, id } = await server.subscriber();
    assert.equal(connection.url, `/ws/metrics?ticket=ticket-${number}`);
    assert.deepEqual(connection.offered, ["routecast.v1.json"]);
    assert.equal(connection.authorization, undefined);
    connection.snapshot(id, number, { total_decisions: number });
    connection.cut();
  }
  assert.deepEqual(server.asked.slice(0, 2), ["POST /v1/tickets", "POST /v1/tickets"]);
  assert.equal(server.credentials[0], "Bearer secret");
});

test("without a token a ticket is asked for, too", async (t) => {
  const server = await ScriptedServer.serve(t);
  follow(t, server, undefined);
  const { connection } = await server.subscriber();
  assert.match(connection.url, /ticket=/);
  assert.deepEqual(server.credentials, [undefined]);
});

test("a connection that does not open is explained without its ticket", async (t) => {
  const server = await ScriptedServer.serve(t);
  server.cut = 1;
  const states = follow(t, server, "secret");
  await server.subscriber();
  await states.next(({ name }) => name === "reconnecting");
  assert.deepEqual(server.asked.slice(0, 3), ["POST /v1/tickets", "OPTIONS /ws/metrics", "POST /v1/tickets"]);
});

test("a token that gets no ticket is refused as one that opens no stream", async (t) => {
  const server = await ScriptedServer.serve(t, { refuse: { status: 401, body: PROBLEM } });
  const { status, reason } = await follow(t, server, "secret").next(({ name }) => name === "closed");
  assert.equal(status, 401);
  assert.match(reason, /it has expired/);
});

test("the answer of a proxy is not final", async (t) => {
  const server = await ScriptedServer.serve(t, { refuse: { status: 200, page: "<h1>Sign in</h1>" } });
  const states = follow(t, server, "secret");
  const { reason } = await states.next(({ name }) => name === "reconnecting");
  assert.match(reason, /sign in again/);
  server.refuse = undefined;
  await server.subscriber();
});

test("fetchTicket returns a ticket, or says why there is none", async (t) => {
  const server = await ScriptedServer.serve(t);
  assert.equal(await fetchTicket(server.url, " secret\n"), "ticket-1");
  assert.equal(await fetchTicket(`${server.url}/ws/metrics`), "ticket-2");
  assert.deepEqual(server.credentials, ["Bearer secret", undefined]);
  const refused = (retryable) => (error) => error instanceof RoutecastError && error.retryable === retryable;
  server.refuse = { status: 401, body: PROBLEM };
  await assert.rejects(fetchTicket(server.url, "secret"), refused(false));
  server.refuse = { status: 429, body: { ...PROBLEM, status: 429 } };
  await assert.rejects(fetchTicket(server.url, "secret"), refused(true));
  server.stop();
  await assert.rejects(fetchTicket(server.url, "secret"), refused(true));
});
