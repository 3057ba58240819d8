/** The client against a scripted server: its messages, documents and states. */

import assert from "node:assert/strict";
import test from "node:test";

import { connect } from "../routecast.js";
import { Queue, ScriptedServer, TIMESTAMP, WebSocket } from "./scripted_server.js";

const QUICK = { firstDelay: 20, longestDelay: 50, WebSocket };

/** Stop the clock, so that a slow machine does not change a measured delay. */
function stopClock(t) {
  const now = Date.now();
  t.mock.method(Date, "now", () => now);
}

/** Connect until the test ends. The states go into a queue, each with its delay in ms. */
function open(t, server, options = {}) {
  const client = connect(server.url, { ...QUICK, ...options });
  t.after(() => client.close());
  const states = new Queue();
  client.onState((state) => states.put({ ...state, wait: state.at - Date.now() }));
  const state = (name) => states.next((state) => state.name === name);
  return { client, state };
}

/** Subscribe. Documents go into a queue, each with its frame; errors into another. */
function follow(client, view = {}) {
  const documents = new Queue();
  const errors = new Queue();
  const subscription = client.subscribe(view, (metrics, frame) => documents.put({ metrics, frame }), errors.put);
  return { subscription, documents, errors };
}

test("snapshots and deltas make documents", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const { documents } = follow(client);
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 7, { total_decisions: 1, provider_usage: { gemini: 1 } });
  connection.delta(id, 7, 8, { total_decisions: 2, provider_usage: { gemini: null, claude: 2 } });
  assert.deepEqual((await documents.next()).metrics, {
    total_decisions: 1,
    provider_usage: { gemini: 1 },
    timestamp: TIMESTAMP,
  });
  assert.deepEqual(await documents.next(), {
    metrics: { total_decisions: 2, provider_usage: { claude: 2 }, timestamp: TIMESTAMP },
    frame: { position: { epoch: "2172da84ecb2c9f1", seq: 8 }, source: "live", age_ms: 0, timestamp: TIMESTAMP },
  });
});

test("a listener gets the present state when it is added", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server);
  assert.deepEqual((({ name, again }) => [name, again])(await state("connecting")), ["connecting", false]);
  (await server.connection()).hello();
  await state("connected");
  const later = new Queue();
  client.onState(later.put);
  assert.equal(later.size, 0); // not while the code that adds it still runs
  assert.deepEqual(await later.next(), { name: "connected", protocol: "routecast.v1" });
  const never = new Queue();
  const [last, end] = [new Queue(), client.onState(never.put)];
  end();
  client.onState(last.put);
  client.close();
  assert.equal((await last.next()).name, "closed");
  assert.equal((await later.next()).name, "closed");
  assert.deepEqual([last.size, later.size, never.size], [0, 0, 0]);
});

test("a delta on another base is not applied: the client subscribes again, under another id", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const { documents } = follow(client);
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 7, { total_decisions: 1 });
  connection.delta(id, 8, 9, { total_decisions: 100 });
  connection.delta(id, 7, 8, { total_decisions: 200 });
  assert.equal((await connection.next("unsubscribe")).id, id);
  const again = await connection.next("subscribe");
  assert.notEqual(again.id, id);
  assert.equal(again.position, undefined);
  connection.snapshot(again.id, 9, { total_decisions: 3 });
  assert.equal((await documents.next()).metrics.total_decisions, 1);
  assert.equal((await documents.next()).metrics.total_decisions, 3);
});

test("a delta of another epoch is not applied", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const { documents } = follow(client);
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 7, { total_decisions: 1 });
  connection.delta(id, 7, 8, { total_decisions: 100 }, "another");
  await connection.next("subscribe");
  assert.equal((await documents.next()).metrics.total_decisions, 1);
  assert.equal(documents.size, 0);
});

test("after a loss, a subscription resumes from its position", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server);
  const { documents } = follow(client, { fields: ["total_decisions"], interval: 1 });
  const first = await server.subscriber();
  first.connection.snapshot(first.id, 7, { total_decisions: 1 });
  await documents.next();
  first.connection.cut();
  const lost = await state("reconnecting");
  assert.equal(lost.reason, "the server cannot be reached");
  assert.ok(lost.wait <= QUICK.longestDelay);
  const second = await server.connection();
  second.hello();
  const { id, position, fields, interval } = await second.next("subscribe");
  assert.deepEqual(position, { epoch: "2172da84ecb2c9f1", seq: 7 });
  assert.deepEqual([fields, interval], [["total_decisions"], 1]);
  second.delta(id, 7, 9, { total_decisions: 3 });
  assert.equal((await documents.next()).metrics.total_decisions, 3);
});

test("any name is possible, also __proto__", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const { documents } = follow(client);
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, JSON.parse('{"provider_usage":{"__proto__":1}}'));
  await documents.next();
  connection.send(`{"type":"delta","id":"${id}","base":1,"position":{"epoch":"2172da84ecb2c9f1","seq":2},"data":{"provider_usage":{"__proto__":2,"constructor":1}}}`);
  const { metrics } = await documents.next();
  assert.deepEqual(Object.entries(metrics.provider_usage), [["__proto__", 2], ["constructor", 1]]);
  assert.equal({}.constructor, Object);
});

test("a loop gets the newest document, and leaving it ends the subscription", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const subscription = client.subscribe();
  const { connection, id } = await server.subscriber();
  const seen = [];
  connection.snapshot(id, 1, { total_decisions: 1 });
  for await (const { total_decisions } of subscription) {
    seen.push(total_decisions);
    if (total_decisions === 5) break;
    for (let seq = 2; seq <= 5; seq++) connection.delta(id, seq - 1, seq, { total_decisions: seq });
    connection.send({ type: "pong", id: "after" });
    await new Promise((resolve) => setTimeout(resolve, 50)); // slower than the server
  }
  assert.deepEqual(seen, [1, 5]);
  assert.equal((await connection.next("unsubscribe")).id, id);
});

test("a loop over a refused subscription throws", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const subscription = client.subscribe({ interval: 0 });
  const { connection, id } = await server.subscriber();
  connection.send({ type: "error", id, code: "bad_request", message: "interval: must be …", retryable: false });
  await assert.rejects(subscription[Symbol.asyncIterator]().next(), { code: "bad_request", message: "interval: must be …" });
});

test("the listener gets a retryable error, and the subscription stays", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const { documents, errors } = follow(client);
  const { connection, id } = await server.subscriber();
  connection.send({ type: "error", id, code: "unavailable", message: "Failed to fetch metrics", retryable: true });
  const error = await errors.next();
  assert.deepEqual([error.message, error.retryable], ["Failed to fetch metrics", true]);
  connection.snapshot(id, 1, { total_decisions: 1 });
  assert.equal((await documents.next()).metrics.total_decisions, 1);
});

test("closing ends the connection, loops and states", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server);
  const loop = client.subscribe()[Symbol.asyncIterator]().next();
  const { connection } = await server.subscriber();
  client.close();
  const [code] = await connection.ended;
  assert.equal(code, 1000);
  assert.equal((await loop).done, true);
  assert.equal((await state("closed")).code, 1000);
});

test("a goodbye says when to reconnect", async (t) => {
  stopClock(t);
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server, { firstDelay: 60_000, longestDelay: 60_000 });
  follow(client);
  const { connection } = await server.subscriber();
  connection.send({ type: "goodbye", code: 1012, reconnect_after_ms: 150 });
  connection.close(1012);
  const { wait, reason } = await state("reconnecting");
  assert.ok(wait > 140 && wait <= 150, `${wait}`);
  assert.equal(reason, "the server restarts");
  await server.subscriber();
});

test("after 4401 the client reconnects with another token", async (t) => {
  const server = await ScriptedServer.serve(t);
  let tokens = 0;
  const { client } = open(t, server, { token: async () => `a.b.?>~${++tokens}` });
  follow(client);
  const first = await server.connection();
  first.hello();
  assert.deepEqual(first.offered, ["routecast.v1.json", `routecast.bearer.${Buffer.from("a.b.?>~1").toString("base64url")}`]);
  await first.next("subscribe");
  first.close(4401);
  const second = await server.connection();
  assert.equal(second.offered[1], `routecast.bearer.${Buffer.from("a.b.?>~2").toString("base64url")}`);
});

test("after 4401 the client does not reconnect with the same token", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server, { token: () => "same" });
  follow(client);
  (await server.subscriber()).connection.close(4401);
  await state("reconnecting");
  const { reason, code } = await state("closed");
  assert.equal(reason, "the server closed the connection (close code 4401); a valid token or API key is needed");
  assert.equal(code, 4401);
});

test("retry() connects again with a token that was refused", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server, { token: () => "same" });
  follow(client);
  (await server.subscriber()).connection.close(4401);
  await state("closed");
  client.retry();
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, {});
  await state("connected");
});

test("a token is removed of whitespace around it, and one that no header can hold is not sent", async (t) => {
  const server = await ScriptedServer.serve(t);
  open(t, server, { token: " secret\n" });
  assert.equal((await server.connection()).offered[1], `routecast.bearer.${Buffer.from("secret").toString("base64url")}`);
  for (const token of ["se cret", "s\u{1f511}", "se\ncret"]) {
    const { state } = open(t, server, { token });
    const { reason, status } = await state("closed");
    assert.deepEqual([reason, status], ["the token must be a text of visible ASCII characters", 401]);
  }
  assert.equal(server.connections, 0);
});

test("the client asks with its token why it was refused", async (t) => {
  const refuse = { status: 403, body: { detail: "this needs the scope `read`" } };
  refuse.headers = { "WWW-Authenticate": 'Bearer error="insufficient_scope", scope="read"' };
  const server = await ScriptedServer.serve(t, { refuse });
  const { state } = open(t, server, { token: () => "a.b.c" });
  const { reason, status } = await state("closed");
  assert.equal(reason, "the server refused the connection (this needs the scope `read`); a token or an API key that has it is needed");
  assert.equal(status, 403);
  assert.deepEqual(server.credentials, ["Bearer a.b.c"]);
});

test("a function may return no token, and one later", async (t) => {
  const refuse = { status: 401, body: { detail: "no credential" } };
  const server = await ScriptedServer.serve(t, { refuse });
  let token;
  const { client, state } = open(t, server, { token: () => token });
  follow(client);
  assert.equal((await state("closed")).status, 401);
  token = "later";
  server.refuse = undefined;
  client.retry();
  const { connection, id } = await server.subscriber();
  assert.deepEqual(connection.offered, ["routecast.v1.json", `routecast.bearer.${Buffer.from("later").toString("base64url")}`]);
  connection.snapshot(id, 1, {});
  await state("connected");
  assert.deepEqual(server.credentials, [undefined]);
});

test("a silent server is pinged, then stale, and then disconnected", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server, { patience: 50 });
  follow(client);
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, {});
  const ping = await connection.next("ping");
  connection.send({ type: "pong", id: ping.id });
  await connection.next("ping");
  assert.equal((await state("stale")).reason, "the connection is open but silent");
  connection.snapshot(id, 1, {});
  await state("connected");
  await state("stale");
  assert.equal((await state("reconnecting")).reason, "the connection is open but silent");
  await server.subscriber();
});

test("a refusal is final, and its reason has the server's text", async (t) => {
  const refuse = { status: 403, body: { title: "Forbidden", status: 403, detail: "Origin 'x' may not connect" } };
  const server = await ScriptedServer.serve(t, { refuse });
  const { state } = open(t, server);
  const { reason, status, code } = await state("closed");
  assert.equal(reason, "the server refused the connection (Origin 'x' may not connect)");
  assert.deepEqual([status, code], [403, null]);
  assert.deepEqual(server.asked, ["OPTIONS /ws/metrics"]);
});

test("a server without room says when to reconnect", async (t) => {
  stopClock(t);
  const refuse = { status: 503, body: { detail: "too many connections" }, headers: { "Retry-After": "7" } };
  const server = await ScriptedServer.serve(t, { refuse });
  const { state } = open(t, server);
  const { wait, reason } = await state("reconnecting");
  assert.equal(reason, "the server refused the connection (too many connections)");
  assert.ok(wait > 6_900 && wait <= 7_000 + QUICK.longestDelay, `${wait}`);
});

test("delays between attempts to reach an absent server grow", async (t) => {
  stopClock(t);
  t.mock.method(Math, "random", () => 1);
  const server = await ScriptedServer.serve(t);
  server.stop();
  const { state } = open(t, server, { firstDelay: 10, longestDelay: 30 });
  const waits = [];
  for (let i = 0; i < 5; i++) waits.push((await state("reconnecting")).wait);
  for (const [i, bound] of [10, 16, 25.6, 30, 30].entries()) {
    assert.ok(waits[i] < bound + 0.1 && waits[i] > bound - 5, `${waits}`);
  }
});

test("a document resets the delays", async (t) => {
  stopClock(t);
  t.mock.method(Math, "random", () => 1);
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server, { firstDelay: 10, longestDelay: 10_000 });
  const { documents } = follow(client);
  for (const bound of [10, 16, 25.6]) {
    (await server.subscriber()).connection.cut();
    const { wait } = await state("reconnecting");
    assert.ok(wait < bound + 0.1 && wait > bound - 5, `${wait}`);
  }
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, {});
  await documents.next();
  connection.cut();
  assert.ok((await state("reconnecting")).wait < 10.1);
});

test("documents never go back in time, although another node may lag", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const { documents } = follow(client);
  const first = await server.subscriber();
  first.connection.snapshot(first.id, 9, { total_decisions: 9 });
  await documents.next();
  first.connection.cut();
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 7, { total_decisions: 7 });
  connection.delta(id, 7, 10, { total_decisions: 10 });
  assert.equal((await documents.next()).metrics.total_decisions, 10);
});

test("delays are random, from 0 to their limit", async (t) => {
  const { retryDelay } = await import("../connection.js");
  const bounds = { firstDelay: 100, longestDelay: 1_000 };
  const first = Array.from({ length: 1_000 }, () => retryDelay(0, bounds));
  assert.ok(Math.min(...first) < 10 && Math.max(...first) > 90 && Math.max(...first) <= 100);
  assert.ok(Array.from({ length: 100 }, () => retryDelay(50, bounds)).every((delay) => delay <= 1_000));
});

test("a message that is not JSON ends the connection, and the client reconnects", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client, state } = open(t, server);
  follow(client);
  (await server.subscriber()).connection.send("{");
  assert.equal((await state("reconnecting")).reason, "the server sent a message that is not JSON");
  await server.subscriber();
});

test("messages of unknown types are ignored", async (t) => {
  const server = await ScriptedServer.serve(t);
  const { client } = open(t, server);
  const { documents } = follow(client);
  const { connection, id } = await server.subscriber();
  connection.send({ type: "news", id });
  connection.snapshot("no id of ours", 1, {});
  connection.snapshot(id, 1, { total_decisions: 1 });
  assert.equal((await documents.next()).metrics.total_decisions, 1);
});

// -- a server with the default stream only --------------------------------------------------------

test("if the server does not know routecast.v1, the client uses the default stream", async (t) => {
  const server = await ScriptedServer.serve(t, { v1: false });
  const { client, state } = open(t, server);
  const view = { fields: ["total_decisions", "rate"], filter: { strategy: ["a b", "c"] }, window: "1h", interval: 0.5 };
  const { documents, errors } = follow(client, view);
  const connection = await defaultStream(server);
  assert.equal(connection.url, "/ws/metrics?fields=total_decisions%2Crate&strategy=a+b&strategy=c&window=1h&interval=0.5");
  connection.send({ total_decisions: 3, avg_confidence: null, timestamp: TIMESTAMP });
  assert.equal((await state("connected")).protocol, "default");
  assert.deepEqual(await documents.next(), {
    metrics: { total_decisions: 3, timestamp: TIMESTAMP },
    frame: { position: null, source: null, age_ms: null, timestamp: TIMESTAMP },
  });
  connection.send({ error: "Failed to fetch metrics", timestamp: TIMESTAMP });
  assert.equal((await errors.next()).message, "Failed to fetch metrics");
});

/** The next connection that asks for no subprotocol. A lenient library opens the other one first. */
async function defaultStream(server) {
  for (;;) {
    const connection = await server.connection();
    if (connection.offered.length === 0) return connection;
  }
}

test("on the default stream, each subscription has its own connection, which it closes at its end", async (t) => {
  const server = await ScriptedServer.serve(t, { v1: false });
  const { client } = open(t, server);
  const first = follow(client, { interval: 1 });
  assert.equal((await defaultStream(server)).url, "/ws/metrics?interval=1");
  const second = follow(client, { interval: 2 });
  const connection = await defaultStream(server);
  assert.equal(connection.url, "/ws/metrics?interval=2");
  connection.send({ total_decisions: 2, timestamp: TIMESTAMP });
  assert.equal((await second.documents.next()).metrics.total_decisions, 2);
  second.subscription.close();
  await connection.ended;
  assert.equal(first.documents.size, 0);
  assert.equal(client.state.name, "connected");
});

test("a close frame of the default stream says when to reconnect, and routecast.v1 is tried first", async (t) => {
  stopClock(t);
  const server = await ScriptedServer.serve(t, { v1: false });
  const { client, state } = open(t, server, { firstDelay: 60_000, longestDelay: 60_000 });
  follow(client);
  const connection = await defaultStream(server);
  connection.close(1012, "reconnect_after_ms=30");
  assert.ok((await state("reconnecting")).wait <= 30);
  await defaultStream(server);
});

test("an address is that of a server or of its stream", async (t) => {
  const server = await ScriptedServer.serve(t);
  for (const url of [`${server.url}/`, `${server.url}/ws/metrics`, new URL(server.url.replace("http", "ws"))]) {
    const client = connect(url, QUICK);
    t.after(() => client.close());
    assert.equal((await server.connection()).url, "/ws/metrics");
  }
  const below = connect(`${server.url}/routecast/`, QUICK);
  t.after(() => below.close());
  assert.equal((await server.connection()).url, "/routecast/ws/metrics");
  assert.throws(() => connect("127.0.0.1:8000"), TypeError);
  assert.throws(() => connect("ftp://127.0.0.1"), TypeError);
  assert.throws(() => connect(server.url, { WebSocket: undefined }), /there is no WebSocket/);
});
