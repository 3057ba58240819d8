/** What the client does after each HTTP answer and close code, by the table of all clients. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { once } from "node:events";
import test from "node:test";

import { connect } from "../routecast.js";
import { closeVerdict, outcomeOfAnswer, outcomeOfClose, retryAfter } from "../close_reasons.js";
import { Queue, ScriptedServer, WebSocket } from "./scripted_server.js";

const TABLE = JSON.parse(readFileSync(new URL("../../../tests/wire/answers.json", import.meta.url), "utf8"));
const ANSWERS = TABLE.http.filter(({ stream }) => stream !== null);
const UNKNOWN = { code: 4999, outcome: "retry" };
/** The end of the reason if another token may help. */
const advice = (outcome) => (outcome === "token" ? "; a valid token or API key is needed" : "");
const QUICK = { firstDelay: 20, longestDelay: 50, WebSocket };

/** Connect until the test ends, and subscribe. States go into a queue. */
function follow(t, url, options = {}) {
  const client = connect(url, { ...QUICK, ...options });
  t.after(() => client.close());
  const [states, documents, errors] = [new Queue(), new Queue(), new Queue()];
  client.onState((state) => states.put({ ...state, wait: state.at - Date.now() }));
  client.subscribe({}, documents.put, errors.put);
  const state = (name) => states.next((state) => state.name === name);
  return { client, state, documents, errors };
}

/** The answer of the scripted server for a row of the table. */
function refusal({ status, by }) {
  if (by === "routecast") return { status, body: { detail: "because" } };
  const html = { "Content-Type": "text/html" };
  return { status, page: status === 204 ? "" : "<h1>Hello</h1>", headers: { ...html, ...(status < 400 && status >= 300 && { Location: "/login" }) } };
}

test("the client's table is that of tests/wire", () => {
  for (const { status, by, stream } of ANSWERS) assert.equal(outcomeOfAnswer(status, by === "routecast"), stream, `${by} ${status}`);
  const listed = new Map(TABLE.close_codes.map(({ code, outcome }) => [code, outcome]));
  for (let code = 1000; code < 5000; code++) assert.equal(outcomeOfClose(code), listed.get(code) ?? "retry", `${code}`);
});

test("delays are those of tests/wire", () => {
  for (const row of TABLE.delays) {
    const { minDelay, exact } = closeVerdict(row.code, row.reason, row.goodbye_ms);
    assert.deepEqual([minDelay, exact], [1_000 * row.seconds, row.exact], JSON.stringify(row));
  }
  for (const { text, seconds } of TABLE.retry_after) assert.equal(retryAfter(text), 1_000 * seconds, text);
});

for (const row of ANSWERS) {
  const { status, by, stream } = row;
  test(`after ${status} of ${by}: ${stream}`, async (t) => {
    const server = await ScriptedServer.serve(t, { refuse: refusal(row) });
    const { client, state } = follow(t, server.url);
    if (stream !== "retry") {
      const closed = await state("closed");
      assert.deepEqual([closed.status, closed.reason], [status, `the server refused the connection (because)${advice(stream)}`]);
      client.retry();
    } else {
      await state("reconnecting");
    }
    server.refuse = undefined;
    const { connection, id } = await server.subscriber();
    connection.snapshot(id, 1, {});
    assert.equal((await state("connected")).protocol, "routecast.v1");
  });
}

for (const { code, outcome } of [...TABLE.close_codes, UNKNOWN]) {
  const after = TABLE.delays.find((row) => row.code === code && !row.reason && row.goodbye_ms === null)?.seconds ?? 0;
  test(`after close code ${code}: ${outcome}`, async (t) => {
    const server = await ScriptedServer.serve(t);
    const { client, state, errors } = follow(t, server.url);
    (await server.subscriber()).connection.close(code, "no");
    if (outcome !== "retry") {
      const closed = await state("closed");
      assert.deepEqual([closed.code, closed.reason], [code, `the server closed the connection (no)${advice(outcome)}`]);
      assert.equal((await errors.next()).code, "closed");
      client.retry();
    } else {
      const { wait } = await state("reconnecting");
      assert.ok(wait > 1_000 * after - 1_000 && wait <= 1_000 * after + QUICK.longestDelay, `${wait}`);
      if (after > 0) client.retry();
    }
    const { connection, id } = await server.subscriber();
    connection.snapshot(id, 1, {});
    await state("connected");
  });
}

test("a problem document that is truncated, or is not Routecast's, is not final", async (t) => {
  const problem = { "Content-Type": "application/problem+json" };
  const bodies = ['{"title":"No","status":403,"det', '{"title":"No","status":404,"detail":"x"}', '{"detail":"x"}', "[]", "null", ""];
  for (const page of bodies) {
    const server = await ScriptedServer.serve(t, { refuse: { status: 403, page, headers: problem } });
    assert.match((await follow(t, server.url).state("reconnecting")).reason, /403 Forbidden, not as Routecast does/);
  }
});

for (const [words, refuse] of Object.entries({
  "a redirect": { status: 302, page: "", headers: { Location: "http://login.example/start?rd=secret" } },
  "401": { status: 401, page: "Sign in", headers: { "Content-Type": "text/html" } },
  "403": { status: 403, page: "" },
  "a page": { status: 200, page: "<h1>Sign in</h1>", headers: { "Content-Type": "text/html" } },
})) {
  test(`if a proxy answers ${words}, the reason says to sign in`, async (t) => {
    const server = await ScriptedServer.serve(t, { refuse });
    const { reason } = await follow(t, server.url).state("reconnecting");
    assert.match(reason, /: you may have to sign in again$/);
    assert.doesNotMatch(reason, /secret/);
  });
}

test("if OPTIONS is accepted, a failed upgrade is tried again with routecast.v1", async (t) => {
  const server = await ScriptedServer.serve(t);
  server.cut = 3;
  const { state, documents } = follow(t, server.url);
  assert.match((await state("reconnecting")).reason, /a proxy in between must pass upgrades on/);
  const { connection, id } = await server.subscriber();
  assert.deepEqual(connection.offered, ["routecast.v1.json"]);
  connection.snapshot(id, 1, { total_decisions: 1 });
  assert.equal((await documents.next()).total_decisions, 1);
});

test("the reason of a redirect names the address to use", async (t) => {
  const headers = { Location: "https://metrics.example/ws/metrics" };
  const server = await ScriptedServer.serve(t, { refuse: { status: 301, page: "", headers } });
  const { reason } = await follow(t, server.url).state("reconnecting");
  assert.equal(reason, "the server answered 301 to https://metrics.example: use that address");
});

test("if a redirect to TLS on the same host does not answer, the first address is tried again", async (t) => {
  const tls = await ScriptedServer.serve(t); // it does not speak TLS
  const headers = { Location: `https://127.0.0.1:${tls.port}/ws/metrics` };
  const server = await ScriptedServer.serve(t, { refuse: { status: 308, page: "", headers } });
  const { state } = follow(t, server.url);
  const { reason } = await state("reconnecting");
  assert.equal(reason, `the server answered 308 to https://127.0.0.1:${tls.port}: use that address (it does not answer)`);
  server.refuse = undefined;
  const { connection, id } = await server.subscriber();
  connection.snapshot(id, 1, {});
  await state("connected");
});

test("an endless answer is not read to its end", async (t) => {
  const site = createServer((request, response) => {
    response.writeHead(403, { "Content-Type": "application/problem+json" });
    const more = () => response.destroyed || (response.write("x".repeat(65_536)), setImmediate(more));
    more();
  });
  site.on("upgrade", (request, socket) => socket.destroy());
  site.listen(0, "127.0.0.1");
  t.after(() => (site.closeAllConnections(), site.close()));
  await once(site, "listening");
  const { reason } = await follow(t, `http://127.0.0.1:${site.address().port}`).state("reconnecting");
  assert.match(reason, /not as Routecast does/);
});
