/**
 * A connection that reconnects by itself: sockets, timers and states. It does not interpret messages.
 *
 * connecting ─► connected ◄─► stale      messages arrive; none arrive, though the connection is open
 *     ▲            │            │
 *     │            ▼            ▼
 *     └─────── reconnecting ◄───┘        waits, longer each time, and connects again
 *
 * `closed` is for good: after `close()`, or if the server refuses this client. `retry()` leaves it.
 */

import { BAD_TOKEN, UNREACHABLE, askForTicket, bearer, closeVerdict, diagnose, isToken } from "./close_reasons.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Socket} Socket */
/** @typedef {import("./types.js").Options} Options */
/** @typedef {Required<Omit<Options, "token">> & Pick<Options, "token">} Settings */
/** @typedef {import("./close_reasons.js").Verdict} Verdict */

/**
 * @typedef {Object} Handlers
 * @property {(state: State) => void} onState
 * @property {(v1: boolean) => void} onOpen must request all topics: with `send` if the server speaks
 *   routecast.v1, else with one `openStream` each
 * @property {(message: any, topic: object | null) => void} onMessage `topic` is null on routecast.v1
 */

const V1 = "routecast.v1.json";
const DELAY_GROWTH = 1.6;

/** After this time a handshake counts as failed; a browser alone would wait for minutes. */
const HANDSHAKE_MS = 10_000;

/** A server sends something at least every 25 s. A longer silence means that the machine was suspended. */
const ASLEEP_MS = 30_000;

/** The error if a server has the default stream only, and this client subscribes to histories only. */
const ONLY_PLAIN = "the server does not speak routecast.v1, and its default stream has metrics only";

const SILENT = "the connection is open but silent";

/**
 * Milliseconds to wait before the next attempt: a random number from 0 to a growing bound ("full
 * jitter"), so that a thousand pages do not reconnect at the same moment.
 *
 * @param {number} failures attempts that failed in a row, from 0
 * @param {{firstDelay: number, longestDelay: number}} bounds
 */
export function retryDelay(failures, { firstDelay, longestDelay }) {
  return Math.random() * Math.min(firstDelay * DELAY_GROWTH ** failures, longestDelay);
}

/** Connects at once, and reconnects until it is closed. */
export class ReconnectingSocket {
  /** @type {State} */
  state = { name: "connecting", again: false };
  /** Whether the server speaks routecast.v1; true until it is known. */
  v1 = true;
  #url;
  #settings;
  #handlers;
  /** @type {Map<Socket, {topic: object | null, interval: number}>} one for routecast.v1, or one per default stream */
  #sockets = new Map();
  #opened = false;
  #attempt = 0;
  #failures = 0;
  #receivedAt = 0;
  /** The earliest time of the next attempt, as the server asked, in ms since 1970. */
  #notBefore = 0;
  /** @type {number | null} the delay of a `goodbye` message, in ms */
  #goodbye = null;
  /** @type {string | undefined} the token of this attempt */
  #token;
  /** @type {string | undefined} the token that was sent on the open connection in place of it */
  #refreshedWith;
  /** @type {Pick<Verdict, "reason" | "code" | "status"> & {token: string | undefined} | undefined} the token that the server refused, and why */
  #refused;
  /** Whether an attempt with a new token was made at once since the last document. */
  #renewed = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} the timer of the present state */
  #timer;
  /** Whether a topic needs routecast.v1, while the default stream is used. */
  #needsV1 = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} the next attempt to use routecast.v1 */
  #v1Timer;
  /** @type {{url: string, reason: string} | undefined} the target of a redirect, while that works */
  #redirect;
  #closed = new AbortController();

  /**
   * @param {string} url
   * @param {Settings} settings
   * @param {Handlers} handlers
   */
  constructor(url, settings, handlers) {
    this.#url = url;
    this.#settings = settings;
    this.#handlers = handlers;
    const { signal } = this.#closed;
    globalThis.addEventListener?.("online", () => this.#wake(), { signal });
    globalThis.addEventListener?.("offline", () => this.#ping(), { signal });
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.#wake(), { signal });
    void this.#connect(false);
  }

  /** Try again now, whatever the state; after `close()` it does nothing. */
  retry() {
    if (this.#closed.signal.aborted) return;
    this.#refused = undefined; // the caller may know that the server accepts the token now
    this.#renewed = false;
    void this.#connect(true);
  }

  close() {
    if (this.#closed.signal.aborted) return;
    this.#closed.abort();
    this.#finish("closed by this side", 1000);
  }

  /** @param {object} message of routecast.v1; ignored while no such connection is open */
  send(message) {
    if (!this.v1 || !this.#opened) return;
    for (const socket of this.#sockets.keys()) socket.send(JSON.stringify(message));
  }

  /**
   * Open a default stream.
   *
   * @param {object} topic
   * @param {URLSearchParams} query
   * @param {number} interval seconds between two documents
   */
  openStream(topic, query, interval) {
    this.#open(`${this.#address}?${query}`, [], topic, interval);
  }

  /** A topic needs routecast.v1: try it again after the default stream was used for a while. */
  requireV1() {
    this.#needsV1 = true;
    if (this.state.name === "connected") this.#tryV1Later();
  }

  #tryV1Later() {
    if (this.#needsV1) this.#v1Timer ??= setTimeout(() => void this.#connect(true), this.#settings.longestDelay);
  }

  /** @param {object} topic whose default stream, if any, is closed */
  closeStream(topic) {
    for (const [socket, stream] of this.#sockets) {
      if (stream.topic === topic && this.#sockets.delete(socket)) closeQuietly(socket);
    }
  }

  /** A requested answer arrived: the delay after the next failure is the first one again. */
  resetBackoff() {
    this.#failures = 0;
    this.#renewed = false;
  }

  /** @param {number} delay ms after which the client must reconnect, as a server's `goodbye` said */
  onGoodbye(delay) {
    this.#goodbye = delay;
  }

  /**
   * The token expires soon: send a new one on the open connection. Without one nothing happens until
   * the server closes the connection.
   */
  async refresh() {
    if (typeof this.#settings.token !== "function") return;
    const attempt = this.#attempt;
    const token = await this.#askForToken().catch(() => undefined); // it is asked for again after the close
    if (attempt !== this.#attempt || !token || !isToken(token)) return;
    if (token === this.#token || token === this.#refreshedWith) return;
    this.#refreshedWith = token;
    this.send({ type: "refresh", token });
  }

  // -- connecting ------------------------------------------------------------------------------

  /** @returns {Promise<string | undefined>} */
  async #askForToken() {
    const { token } = this.#settings;
    const text = typeof token === "function" ? await token() : token;
    return text?.trim() || undefined;
  }

  /** @param {boolean} again */
  async #connect(again) {
    const attempt = this.#reset();
    this.#enter({ name: "connecting", again });
    this.#after(HANDSHAKE_MS, () => this.#reconnectLater(UNREACHABLE));
    let token;
    try {
      token = await this.#askForToken();
    } catch (error) {
      if (attempt === this.#attempt) this.#reconnectLater(`there is no token to connect with (${error})`);
      return;
    }
    if (attempt !== this.#attempt) return;
    this.#token = token;
    if (token && !isToken(token)) return this.#finish(BAD_TOKEN, null, 401);
    if (this.#refused && this.#refused.token === token) return this.#finish(this.#refused.reason, this.#refused.code, this.#refused.status);
    if (this.#settings.tickets) return this.#connectWithTicket(attempt);
    this.#open(this.#address, this.#token ? [V1, bearer(this.#token)] : [V1]);
  }

  /** @param {number} attempt */
  async #connectWithTicket(attempt) {
    const found = await askForTicket(this.#address, this.#token);
    if (attempt !== this.#attempt) return;
    if (found.ticket === null) return this.#conclude(found.verdict, false);
    this.#open(this.#address, [V1], null, 0, found.ticket);
  }

  /** Use the default stream, which every server has. */
  #fallBack() {
    this.#reset();
    this.v1 = false;
    this.#after(HANDSHAKE_MS, () => this.#reconnectLater(UNREACHABLE));
    this.#handlers.onOpen(false);
    if (this.#sockets.size === 0) this.#reconnectLater(ONLY_PLAIN);
  }

  get #address() {
    return this.#redirect?.url ?? this.#url;
  }

  /**
   * @param {string} url
   * @param {string[]} protocols
   * @param {object | null} [topic]
   * @param {number} [interval]
   * @param {string} [ticket]
   */
  #open(url, protocols, topic = null, interval = 0, ticket = undefined) {
    /** @type {Socket} */
    let socket;
    try {
      socket = new this.#settings.WebSocket(ticket ? `${url}?ticket=${encodeURIComponent(ticket)}` : url, protocols);
    } catch (error) {
      return this.#finish(String(error)); // such as ws:// from a page that came over https://
    }
    this.#sockets.set(socket, { topic, interval });
    socket.onopen = () => {
      if (!topic && socket.protocol !== V1) return this.#fallBack();
      this.#opened = true;
      if (!topic) this.#handlers.onOpen(true);
    };
    socket.onmessage = ({ data }) => this.#receive(data, topic);
    socket.onclose = ({ code, reason }) => this.#onClose(url, code, reason);
    // Node.js 20 reports a failed connection by this event alone.
    socket.onerror = () => this.#onClose(url, 1006, "");
  }

  // -- disconnecting ---------------------------------------------------------------------------

  /**
   * @param {string} url
   * @param {number} code
   * @param {string} reason
   */
  #onClose(url, code, reason) {
    if (this.#opened) this.#apply(closeVerdict(code, reason, this.#goodbye));
    else void this.#diagnose(url);
  }

  /** @param {string} url of a socket that did not open */
  async #diagnose(url) {
    const { v1 } = this;
    const attempt = this.#reset();
    const verdict = await diagnose(url, this.#token);
    if (attempt === this.#attempt) this.#conclude(verdict, v1);
  }

  /**
   * @param {Verdict & import("./close_reasons.js").RefusalDetails | null} verdict on an answer, null if there is none
   * @param {boolean} v1 whether it was routecast.v1 that did not open
   */
  #conclude(verdict, v1) {
    const before = this.#redirect;
    if (!before && verdict?.redirect) {
      this.#redirect = { url: verdict.redirect, reason: verdict.reason };
      return void this.#connect(true);
    }
    // A server that does not know routecast.v1 refuses the handshake. A server that answers that it
    // would accept this client knows it: then the handshake was lost on the way.
    if (v1 && verdict?.mayLackV1) return this.#fallBack();
    this.#redirect = undefined;
    if (verdict) this.#apply(verdict);
    else this.#reconnectLater(before ? `${before.reason} (it does not answer)` : UNREACHABLE);
  }

  /** @param {Verdict} verdict */
  #apply({ reason, final, token, minDelay, exact, code, status }) {
    this.#refused = token ? { token: this.#token, reason, code, status } : undefined;
    const mayRenew = token && typeof this.#settings.token === "function";
    if (final && !mayRenew) return this.#finish(reason, code, status);
    // The first attempt with a new token is made at once. If that is refused too, the next one waits.
    const atOnce = exact || (mayRenew && !this.#renewed);
    if (mayRenew) this.#renewed = true;
    this.#reconnectLater(reason, minDelay, atOnce ? 0 : undefined);
  }

  /**
   * @param {string} reason
   * @param {number} [minDelay] ms, as the server asked
   * @param {number} [jitter] ms that are added
   */
  #reconnectLater(reason, minDelay = 0, jitter = retryDelay(this.#failures++, this.#settings)) {
    this.#reset();
    const now = Date.now();
    this.#notBefore = now + minDelay;
    this.#after(minDelay + jitter, () => void this.#connect(true));
    this.#enter({ name: "reconnecting", at: now + minDelay + jitter, reason });
  }

  /**
   * @param {string} reason
   * @param {number | null} [code]
   * @param {number | null} [status]
   */
  #finish(reason, code = null, status = null) {
    this.#reset();
    this.#enter({ name: "closed", reason, code, status });
  }

  /** Close all sockets and stop all timers; returns the number of a new attempt. */
  #reset() {
    clearTimeout(this.#timer);
    clearTimeout(this.#v1Timer);
    this.#v1Timer = undefined;
    this.#needsV1 = false;
    for (const socket of this.#sockets.keys()) closeQuietly(socket);
    this.#sockets.clear();
    this.v1 = true;
    this.#opened = false;
    this.#goodbye = null;
    this.#refreshedWith = undefined;
    return ++this.#attempt;
  }

  /** The network is back, or the page is visible again: reconnect without the remaining delay. */
  #wake() {
    const now = Date.now();
    const { name } = this.state;
    const wasSuspended = name === "connected" && now - this.#receivedAt > Math.max(ASLEEP_MS, 3 * this.#patience);
    const waiting = name === "reconnecting" && now >= this.#notBefore;
    if (waiting || wasSuspended || name === "stale") void this.#connect(true);
  }

  /** @param {State} state */
  #enter(state) {
    this.state = state;
    this.#handlers.onState(state);
  }

  /**
   * @param {number} delay in ms
   * @param {() => void} action
   */
  #after(delay, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, delay);
  }

  // -- receiving -------------------------------------------------------------------------------

  /**
   * @param {unknown} data
   * @param {object | null} topic
   */
  #receive(data, topic) {
    let message;
    try {
      message = JSON.parse(String(data));
    } catch {
      return this.#reconnectLater("the server sent a message that is not JSON");
    }
    this.#receivedAt = Date.now();
    this.#after(this.#patience, () => this.#ping());
    if (this.state.name !== "connected") this.#enter({ name: "connected", protocol: this.v1 ? "routecast.v1" : "default" });
    this.#tryV1Later();
    this.#handlers.onMessage(message, topic);
  }

  /** Send a ping; without an answer in time the connection is stale, and then lost. */
  #ping() {
    if (this.state.name !== "connected") return;
    this.send({ type: "ping", id: "alive" });
    this.#after(this.#patience, () => {
      this.#enter({ name: "stale", reason: SILENT });
      this.#after(this.#patience, () => this.#reconnectLater(SILENT));
    });
  }

  /** Milliseconds of silence after which the connection is checked. */
  get #patience() {
    const intervals = [...this.#sockets.values()].map(({ interval }) => 1_500 * interval);
    return Math.max(this.#settings.patience, ...intervals);
  }
}

/**
 * Close a socket and remove its handlers, so that it calls none of them any more.
 *
 * @param {Socket} socket
 */
function closeQuietly(socket) {
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.onerror = () => {}; // the package `ws` throws if there is no handler
  socket.close(1000);
}
