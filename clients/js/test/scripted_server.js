/** A WebSocket server that a test controls, over real sockets. */

import { once } from "node:events";
import { createServer } from "node:http";

import { WebSocket as Package, WebSocketServer } from "ws";

const WebSocket = process.env.ROUTECAST_TEST_WEBSOCKET === "global" ? globalThis.WebSocket : Package;
export { WebSocket };

const V1 = "routecast.v1.json";
const WAIT_MS = 10_000;

export const EPOCH = "2172da84ecb2c9f1";
export const TIMESTAMP = "2026-01-31T12:34:56.789123+00:00";

/** Values of a callback, for a test that waits for the next one. */
export class Queue {
  #values = [];
  #waiting = [];

  put = (value) => {
    const waiting = this.#waiting.shift();
    if (waiting) waiting(value);
    else this.#values.push(value);
  };

  /** Wait for the next value, or for the next one that `fits`. */
  async next(fits = () => true) {
    const skipped = [];
    for (;;) {
      const value = this.#values.length > 0 ? this.#values.shift() : await this.#wait(skipped);
      if (fits(value)) return value;
      skipped.push(value);
    }
  }

  #wait(skipped) {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`nothing came after ${JSON.stringify(skipped)}`)), WAIT_MS);
      this.#waiting.push((value) => (clearTimeout(late), resolve(value)));
    });
  }

  get size() {
    return this.#values.length;
  }
}

/** One connection of a client, on the server's side. */
class Connection {
  #socket;
  #messages = new Queue();
  ended;

  constructor(socket, request) {
    this.#socket = socket;
    this.url = request.url;
    this.v1 = socket.protocol === V1;
    this.authorization = request.headers.authorization;
    this.offered = request.headers["sec-websocket-protocol"]?.split(/, */) ?? [];
    this.ended = once(socket, "close");
    socket.on("message", (data) => this.#messages.put(JSON.parse(data)));
  }

  send(message) {
    this.#socket.send(typeof message === "string" ? message : JSON.stringify(message));
  }

  hello() {
    const limits = { subscriptions: 16, messages_per_minute: 120, max_message_bytes: 65536, min_interval: 0.1 };
    this.send({ type: "hello", protocol: "routecast.v1", connection: "c", epoch: EPOCH, limits });
  }

  snapshot(id, seq, data) {
    this.send({ type: "snapshot", id, position: { epoch: EPOCH, seq }, source: "live", age_ms: 0, data, timestamp: TIMESTAMP });
  }

  delta(id, base, seq, data, epoch = EPOCH) {
    this.send({ type: "delta", id, base, position: { epoch, seq }, source: "live", age_ms: 0, data, timestamp: TIMESTAMP });
  }

  /** The next message, or the next one of a type. */
  next(type) {
    return this.#messages.next((message) => !type || message.type === type);
  }

  close(code, reason) {
    this.#socket.close(code, reason);
  }

  /** Cut the connection without a close frame. */
  cut() {
    this.#socket.terminate();
  }
}

/** Serves until the test ends. */
export class ScriptedServer {
  #connections = new Queue();
  #sockets;
  #http;
  /** The requests that were no upgrades, and their credentials. */
  asked = [];
  credentials = [];

  /**
   * @param {import("node:test").TestContext} t
   * @param {{v1?: boolean, refuse?: {status: number, body?: object, page?: string, headers?: object}, port?: number}} [options]
   *   `refuse` is the answer in place of an upgrade: `body` is Routecast's own problem document, `page`
   *   is the answer of a proxy
   */
  static async serve(t, options = {}) {
    const server = new ScriptedServer(options);
    await server.listen(options.port ?? 0);
    t.after(() => server.stop());
    return server;
  }

  /** The number of next upgrades that are cut off, as by a proxy that resets them. */
  cut = 0;

  constructor({ v1 = true, refuse }) {
    this.refuse = refuse;
    this.v1 = v1;
    this.#http = createServer((request, response) => this.#answer(request, response));
    const handleProtocols = (offered) => (this.v1 && offered.has(V1) ? V1 : false);
    this.#sockets = new WebSocketServer({ noServer: true, handleProtocols });
    this.#http.on("upgrade", (request, socket, head) => {
      socket.on("error", () => {}); // a refused client may reset its end
      if (this.cut > 0 && this.cut--) return socket.destroy();
      if (this.refuse) return socket.end(`HTTP/1.1 ${this.refuse.status} No\r\nContent-Length: 0\r\n\r\n`);
      this.#sockets.handleUpgrade(request, socket, head, (open) => this.#connections.put(new Connection(open, request)));
    });
  }

  async listen(port) {
    this.#http.listen(port, "127.0.0.1");
    await once(this.#http, "listening");
    this.port = this.#http.address().port;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  #answer(request, response) {
    this.asked.push(`${request.method} ${request.url}`);
    this.credentials.push(request.headers.authorization);
    if (request.url === "/v1/tickets" && !this.refuse) {
      response.writeHead(200, { "Content-Type": "application/json" });
      return response.end(JSON.stringify({ ticket: `ticket-${this.asked.length}`, expires_in: 30 }));
    }
    // A server that has the default stream only answers that it wants an upgrade.
    const { status = this.v1 ? 204 : 426, body, page, headers = {} } = this.refuse ?? {};
    response.writeHead(status, { ...(body && { "Content-Type": "application/problem+json" }), ...headers });
    response.end(body ? JSON.stringify({ title: "No", status, ...body }) : page);
  }

  /** The number of connections that the test has not taken. */
  get connections() {
    return this.#connections.size;
  }

  /** The next connection. */
  connection() {
    return this.#connections.next();
  }

  /** The next connection, after its `hello`, and the id of its subscription. */
  async subscriber() {
    const connection = await this.connection();
    connection.hello();
    const { id } = await connection.next("subscribe");
    return { connection, id };
  }

  stop() {
    for (const socket of this.#sockets.clients) socket.terminate();
    this.#http.closeAllConnections();
    this.#http.close();
  }
}
