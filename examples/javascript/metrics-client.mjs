/**
 * A stream of Routecast metrics that reconnects by itself. No dependencies; for browsers and for
 * Node.js 22 or newer (20: `node --experimental-websocket`).
 *
 *     import { RoutecastStream } from "./metrics-client.mjs";
 *
 *     const stream = new RoutecastStream("http://127.0.0.1:8000?interval=1", {
 *       onMetrics: (metrics) => console.log(metrics.total_decisions),
 *     });
 *     // … and when it is no longer needed:
 *     stream.close();
 */

/** Close codes after which a new try would end the same way. */
const FINAL_CODES = new Set([1002, 1003, 1007, 1008, 1009, 4400, 4401, 4403]);

const TOO_MANY_MESSAGES = 4429;
const LONGEST_DELAY_MS = 60_000;
const GROWTH = 1.6;

const ADDRESS = /^(http|ws)s?:\/\//;
const PATH = "/ws/metrics";

/** Spread by ±20 %, so that a thousand clients do not come back in the same instant. */
const JITTER = 0.2;

/**
 * @typedef {Object} StreamOptions
 * @property {(metrics: any) => void} onMetrics called with each document
 * @property {(message: string) => void} [onError] called when the server has no numbers just now
 * @property {(state: "connecting" | "open" | "waiting" | "refused" | "closed", detail: string) => void} [onState]
 * @property {number} [firstDelayMs] before coming back for the first time; 5 s
 */

export class RoutecastStream {
  #url;
  #options;
  #failures = 0;
  #closed = false;
  /** @type {WebSocket | undefined} */
  #socket;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * Throws a TypeError where the address is none, or there is no WebSocket.
   *
   * @param {string | URL} url the server's, or its stream's; what is asked for is in its query
   * @param {StreamOptions} options
   */
  constructor(url, options) {
    if (!globalThis.WebSocket) {
      throw new TypeError("there is no WebSocket here: Node.js has one from version 22 on, and 20 with --experimental-websocket");
    }
    this.#url = streamUrl(url);
    this.#options = { onError: () => {}, onState: () => {}, firstDelayMs: 5_000, ...options };
    this.#connect();
  }

  /** End the stream for good. */
  close() {
    this.#closed = true;
    this.#drop();
    this.#options.onState("closed", "");
  }

  #connect() {
    this.#options.onState("connecting", this.#url);
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#expectSomething();
    socket.onopen = () => this.#options.onState("open", this.#url);
    socket.onmessage = ({ data }) => this.#receive(data);
    socket.onclose = ({ code, reason }) => this.#lost(code, reason);
    // A failed connection has no code of the server's, and Node.js 20 tells of it by this alone.
    socket.onerror = () => this.#lost(1006, "no connection");
  }

  /** @param {string} data */
  #receive(data) {
    let document;
    try {
      document = JSON.parse(data);
    } catch {
      return this.#lost(1006, "what came is not JSON");
    }
    this.#failures = 0;
    this.#expectSomething();
    if ("error" in document) this.#options.onError(document.error);
    else this.#options.onMetrics(document);
  }

  /** A connection can die without a word: three intervals and a while of nothing, and it is lost. */
  #expectSomething() {
    const interval = Number(new URL(this.#url).searchParams.get("interval") ?? 5);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#lost(1006, "nothing was heard"), 3_000 * interval + 10_000);
  }

  /**
   * @param {number} code
   * @param {string} reason
   */
  #lost(code, reason) {
    this.#drop();
    if (this.#closed) return;
    const detail = `closed with ${code}${reason ? `: ${reason}` : ""}`;
    if (FINAL_CODES.has(code)) {
      this.#options.onState("refused", detail);
      return;
    }
    const grown = Math.min(this.#options.firstDelayMs * GROWTH ** this.#failures++, LONGEST_DELAY_MS);
    const least = code === TOO_MANY_MESSAGES ? LONGEST_DELAY_MS : 0;
    const delay = Math.max(grown, least) * (1 + JITTER * (2 * Math.random() - 1));
    this.#options.onState("waiting", `${detail}; trying again in ${(delay / 1_000).toFixed(1)} s`);
    this.#timer = setTimeout(() => this.#connect(), delay);
  }

  /** Let go of the socket, deaf to what it may still say. */
  #drop() {
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = undefined;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    socket.close();
  }
}

/**
 * @param {string | URL} server by http or ws, with the stream's path or without
 */
function streamUrl(server) {
  if (!ADDRESS.test(String(server))) throw new TypeError(`${server}: an address begins with http://, https://, ws:// or wss://`);
  const url = new URL(server);
  url.protocol = url.protocol.replace("http", "ws");
  url.pathname = url.pathname.replace(/\/(ws\/metrics)?$/, "") + PATH;
  url.hash = "";
  return url.href;
}
