/**
 * A connection to a server that comes back by itself. It knows sockets and timers, and nothing of
 * what is said.
 *
 * connecting ─► connected ◄─► stale      heard from; not heard from, though the connection is open
 *     ▲            │            │
 *     │            ▼            ▼
 *     └─────── reconnecting ◄───┘        waits, longer each time, and connects again
 *
 * `closed` is for good: by `close()`, or by a server that does not want this client as it is; then
 * `retry()` is the way back.
 */

import { UNREACHABLE, askWhy, bearer, closed } from "./close_reasons.js";

/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Socket} Socket */
/** @typedef {import("./types.js").Options} Options */
/** @typedef {Required<Omit<Options, "token">> & Pick<Options, "token">} Settings */
/** @typedef {import("./close_reasons.js").Verdict} Verdict */

/**
 * @typedef {Object} Ears
 * @property {(state: State) => void} onState
 * @property {(v1: boolean) => void} onOpen to ask for all that is followed: with `send` where the
 *   server speaks routecast.v1, else with an `openStream` for each
 * @property {(message: any, topic: object | null) => void} onMessage `topic` is that of the default stream
 */

const V1 = "routecast.v1.json";
const DELAY_GROWTH = 1.6;

/** A handshake that hangs is given up: a browser itself would wait for minutes. */
const HANDSHAKE_MS = 10_000;

/** A server says something each 25 s at least. Who heard nothing for longer was asleep. */
const ASLEEP_MS = 30_000;

/** What a server of the default stream alone is to a client that follows no metrics. */
const ONLY_PLAIN = "the server does not speak routecast.v1, and its default stream has metrics only";

const SILENT = "the connection is open but silent";

/**
 * Milliseconds to wait before the next attempt: by chance from nothing to a bound that grows ("full
 * jitter"), so that a thousand pages do not come back in the same instant.
 *
 * @param {number} failures attempts that failed in a row, from 0
 * @param {{firstDelay: number, longestDelay: number}} bounds
 */
export function retryDelay(failures, { firstDelay, longestDelay }) {
  return Math.random() * Math.min(firstDelay * DELAY_GROWTH ** failures, longestDelay);
}

/** Connects at once, and runs until it is closed. */
export class Line {
  /** @type {State} */
  state = { name: "connecting", again: false };
  /** Whether the server speaks routecast.v1, as far as is known. */
  v1 = true;
  #url;
  #settings;
  #ears;
  /** @type {Map<Socket, {topic: object | null, interval: number}>} one, or one for each default stream */
  #sockets = new Map();
  #opened = false;
  #attempt = 0;
  #failures = 0;
  #heardAt = 0;
  /** Until when the server asked this client to stay away, in ms since 1970. */
  #awayUntil = 0;
  /** @type {number | null} */
  #goodbye = null;
  /** @type {string | undefined} the token of this attempt */
  #token;
  /** @type {string | undefined} the token with which the server let nobody in */
  #refused;
  /** @type {ReturnType<typeof setTimeout> | undefined} the one thing the present state waits for */
  #timer;
  /** Whether somebody waits for routecast.v1, while the default stream is read. */
  #awaited = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} until it is tried again */
  #later;
  /** @type {{url: string, reason: string} | undefined} where a redirect led, for as long as that works */
  #moved;
  #ended = new AbortController();

  /**
   * @param {string} url
   * @param {Settings} settings
   * @param {Ears} ears
   */
  constructor(url, settings, ears) {
    this.#url = url;
    this.#settings = settings;
    this.#ears = ears;
    const { signal } = this.#ended;
    globalThis.addEventListener?.("online", () => this.#nudge(), { signal });
    globalThis.addEventListener?.("offline", () => this.#ask(), { signal });
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.#nudge(), { signal });
    void this.#connect(false);
  }

  /** Try again now, whatever the state; after `close()` it does nothing. */
  retry() {
    if (!this.#ended.signal.aborted) void this.#connect(true);
  }

  close() {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort();
    this.#finish("closed by this side", 1000);
  }

  /** @param {object} message of routecast.v1; dropped where none can be sent */
  send(message) {
    if (!this.v1 || !this.#opened) return;
    for (const socket of this.#sockets.keys()) socket.send(JSON.stringify(message));
  }

  /**
   * Read a default stream.
   *
   * @param {object} topic
   * @param {URLSearchParams} query
   * @param {number} interval seconds between two documents
   */
  openStream(topic, query, interval) {
    this.#open(`${this.#at}?${query}`, [], topic, interval);
  }

  /** Somebody waits for routecast.v1: try it again once the default stream was read for a while. */
  awaitV1() {
    this.#awaited = true;
    if (this.state.name === "connected") this.#tryV1Later();
  }

  #tryV1Later() {
    if (this.#awaited) this.#later ??= setTimeout(() => void this.#connect(true), this.#settings.longestDelay);
  }

  /** @param {object} topic whose default stream is read no longer */
  closeStream(topic) {
    for (const [socket, its] of this.#sockets) {
      if (its.topic === topic && this.#sockets.delete(socket)) hangUp(socket);
    }
  }

  /** What was asked for came: the next failure is a first one again. */
  succeeded() {
    this.#failures = 0;
  }

  /** @param {number} delay ms after which a server that restarts told this client to come back */
  sayGoodbye(delay) {
    this.#goodbye = delay;
  }

  // -- coming ----------------------------------------------------------------------------------

  /** @param {boolean} again */
  async #connect(again) {
    const attempt = this.#drop();
    this.#enter({ name: "connecting", again });
    this.#after(HANDSHAKE_MS, () => this.#lost(UNREACHABLE));
    const { token } = this.#settings;
    try {
      this.#token = typeof token === "function" ? await token() : token;
    } catch (error) {
      if (attempt === this.#attempt) this.#lost(`there is no token to connect with (${error})`);
      return;
    }
    if (attempt !== this.#attempt) return;
    if (this.#token && this.#token === this.#refused) return this.#finish("the server refused the token, and there is no other");
    this.#open(this.#at, this.#token ? [V1, bearer(this.#token)] : [V1]);
  }

  /** Make do with the default stream, which every server has. */
  #fallBack() {
    this.#drop();
    this.v1 = false;
    this.#after(HANDSHAKE_MS, () => this.#lost(UNREACHABLE));
    this.#ears.onOpen(false);
    if (this.#sockets.size === 0) this.#lost(ONLY_PLAIN);
  }

  get #at() {
    return this.#moved?.url ?? this.#url;
  }

  /**
   * @param {string} url
   * @param {string[]} protocols
   * @param {object | null} [topic]
   * @param {number} [interval]
   */
  #open(url, protocols, topic = null, interval = 0) {
    /** @type {Socket} */
    let socket;
    try {
      socket = new this.#settings.WebSocket(url, protocols);
    } catch (error) {
      return this.#finish(String(error)); // such as ws:// from a page that came over https://
    }
    this.#sockets.set(socket, { topic, interval });
    socket.onopen = () => {
      if (!topic && socket.protocol !== V1) return this.#fallBack();
      this.#opened = true;
      if (!topic) this.#ears.onOpen(true);
    };
    socket.onmessage = ({ data }) => this.#hear(data, topic);
    socket.onclose = ({ code, reason }) => this.#closed(url, code, reason);
    // Of a connection that failed, Node.js 20 tells by this alone.
    socket.onerror = () => this.#closed(url, 1006, "");
  }

  // -- going -----------------------------------------------------------------------------------

  /**
   * @param {string} url
   * @param {number} code
   * @param {string} reason
   */
  #closed(url, code, reason) {
    if (this.#opened) this.#heed(closed(code, reason, this.#goodbye));
    else void this.#learnWhy(url);
  }

  /** @param {string} url of a socket that did not open */
  async #learnWhy(url) {
    const { v1 } = this;
    const attempt = this.#drop();
    const verdict = await askWhy(url);
    if (attempt !== this.#attempt) return;
    const before = this.#moved;
    if (!before && verdict?.moved) {
      this.#moved = { url: verdict.moved, reason: verdict.reason };
      return void this.#connect(true);
    }
    // A server that does not know routecast.v1 lets nobody in who asks for it. One that says it would
    // let this client in knows it: the handshake was lost on the way.
    if (v1 && verdict?.plain) return this.#fallBack();
    this.#moved = undefined;
    if (verdict) this.#heed(verdict);
    else this.#lost(before ? `${before.reason} (nobody is there)` : UNREACHABLE);
  }

  /** @param {Verdict} verdict */
  #heed({ reason, final, token, least, exact, code, status }) {
    this.#refused = token ? this.#token : undefined;
    const another = token && typeof this.#settings.token === "function";
    if (final && !another) this.#finish(reason, code, status);
    else this.#lost(reason, least, exact ? 0 : undefined);
  }

  /**
   * @param {string} reason
   * @param {number} [least] ms to stay away, as the server asked
   * @param {number} [more] ms on top of them
   */
  #lost(reason, least = 0, more = retryDelay(this.#failures++, this.#settings)) {
    this.#drop();
    const now = Date.now();
    this.#awayUntil = now + least;
    this.#after(least + more, () => void this.#connect(true));
    this.#enter({ name: "reconnecting", at: now + least + more, reason });
  }

  /**
   * @param {string} reason
   * @param {number | null} [code]
   * @param {number | null} [status]
   */
  #finish(reason, code = null, status = null) {
    this.#drop();
    this.#enter({ name: "closed", reason, code, status });
  }

  /** Let go of what there is; returns the number of a new attempt. */
  #drop() {
    clearTimeout(this.#timer);
    clearTimeout(this.#later);
    this.#later = undefined;
    this.#awaited = false;
    for (const socket of this.#sockets.keys()) hangUp(socket);
    this.#sockets.clear();
    this.v1 = true;
    this.#opened = false;
    this.#goodbye = null;
    return ++this.#attempt;
  }

  /** The network or the person has come back. */
  #nudge() {
    const now = Date.now();
    const { name } = this.state;
    const asleep = name === "connected" && now - this.#heardAt > Math.max(ASLEEP_MS, 3 * this.#patience);
    const waiting = name === "reconnecting" && now >= this.#awayUntil;
    if (waiting || asleep || name === "stale") void this.#connect(true);
  }

  /** @param {State} state */
  #enter(state) {
    this.state = state;
    this.#ears.onState(state);
  }

  /**
   * @param {number} delay in ms
   * @param {() => void} action
   */
  #after(delay, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, delay);
  }

  // -- hearing ---------------------------------------------------------------------------------

  /**
   * @param {unknown} data
   * @param {object | null} topic
   */
  #hear(data, topic) {
    let message;
    try {
      message = JSON.parse(String(data));
    } catch {
      return this.#lost("the server sent what is not JSON");
    }
    this.#heardAt = Date.now();
    this.#after(this.#patience, () => this.#ask());
    if (this.state.name !== "connected") this.#enter({ name: "connected", protocol: this.v1 ? "routecast.v1" : "default" });
    this.#tryV1Later();
    this.#ears.onMessage(message, topic);
  }

  /** Ask for a sign of life, and see whether one comes. */
  #ask() {
    if (this.state.name !== "connected") return;
    this.send({ type: "ping", id: "alive" });
    this.#after(this.#patience, () => {
      this.#enter({ name: "stale", reason: SILENT });
      this.#after(this.#patience, () => this.#lost(SILENT));
    });
  }

  /** Milliseconds of silence that are nothing strange. */
  get #patience() {
    const intervals = [...this.#sockets.values()].map(({ interval }) => 1_500 * interval);
    return Math.max(this.#settings.patience, ...intervals);
  }
}

/**
 * Close a socket, deaf to what it may still say.
 *
 * @param {Socket} socket
 */
function hangUp(socket) {
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.onerror = () => {}; // the package `ws` throws where nobody listens
  socket.close(1000);
}
