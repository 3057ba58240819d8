/**
 * Live metrics of a Routecast server, over one WebSocket that comes back by itself. For browsers,
 * workers and Node.js; no dependencies.
 *
 *     import { connect } from "@routecast/client";
 *
 *     const client = connect("http://127.0.0.1:8000");
 *     client.subscribe({ fields: ["total_decisions"], interval: 1 }, ({ total_decisions }) => {
 *       console.log(total_decisions);
 *     });
 *     // … and when it is no longer needed:
 *     client.close();
 *
 * connecting ─► connected ◄─► stale      heard from; not heard from, though the connection is open
 *     ▲            │            │
 *     │            ▼            ▼
 *     └─────── reconnecting ◄───┘        waits, longer each time, and connects again
 *
 * `closed` is for good: by `close()`, or by a server that does not want this client as it is; then
 * `retry()` is the way back.
 */

/** @typedef {import("./types.js").View} View */
/** @typedef {import("./types.js").Metrics} Metrics */
/** @typedef {import("./types.js").Frame} Frame */
/** @typedef {import("./types.js").Position} Position */
/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").Totals} Totals */
/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Options} Options */
/** @typedef {import("./types.js").Socket} Socket */
/** @typedef {(error: RoutecastError) => void} OnError without one, errors go to the console */

const V1 = "routecast.v1.json";
const STREAM = "/ws/metrics";

const DEFAULTS = { firstDelay: 5_000, longestDelay: 60_000, patience: 10_000 };
const DELAY_GROWTH = 1.6;
const AFTER_TOO_MANY_MS = 60_000;

/** A handshake that hangs is given up: a browser itself would wait for minutes. */
const HANDSHAKE_MS = 10_000;
const ASK_WHY_MS = 5_000;

/** A server says something each 25 s at least. Who heard nothing for longer was asleep. */
const ASLEEP_MS = 30_000;

/** Seconds between two documents of the default stream, where nobody asks for another number. */
const DEFAULT_INTERVAL = 5;

const RESTART = 1012;
const UNAUTHENTICATED = 4401;
const TOO_MANY_MESSAGES = 4429;

/** Close codes after which a new attempt would end the same way. */
const FINAL_CODES = new Set([1002, 1003, 1007, 1008, 1009, 4400, 4403]);

const UNREACHABLE = "the server cannot be reached";
const SILENT = "the connection is open but silent";
const NO_UPGRADE = "the server answers, but no WebSocket gets through to it: a proxy in between must pass upgrades on";

/** What the server could not do. When `retryable`, the subscription stays, and may yet be served. */
export class RoutecastError extends Error {
  /**
   * @param {string} code such as `bad_request`
   * @param {string} message
   * @param {boolean} retryable
   */
  constructor(code, message, retryable) {
    super(message);
    this.name = "RoutecastError";
    this.code = code;
    this.retryable = retryable;
  }
}

/**
 * Connect to a server, by its address or its stream's. The first attempt begins at once, and there
 * is no last one. Throws a TypeError where the address is none, or there is no WebSocket.
 *
 * @param {string | URL} url such as `https://metrics.example`
 * @param {Options} [options]
 */
export function connect(url, options) {
  return new Client(url, options);
}

/**
 * Apply a JSON Merge Patch (RFC 7396). Neither argument is changed; what stays the same is shared
 * with the result.
 *
 * @param {unknown} target
 * @param {unknown} patch
 * @returns {any}
 */
export function mergePatch(target, patch) {
  if (!isObject(patch)) return patch;
  // By way of a map: to assign to a key "__proto__" would do something else.
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) merged.delete(key);
    else merged.set(key, mergePatch(merged.get(key), value));
  }
  return Object.fromEntries(merged);
}

/**
 * @param {unknown} value
 * @returns {value is Record<string, unknown>}
 */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

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

/**
 * What is subscribed to, for a callback or a loop. A loop that is slow gets fewer, newer values:
 * only the newest waits for it.
 *
 * @template T
 */
export class Subscription {
  #onValue;
  #onError;
  #onClose;
  /** @type {{value: T} | null} */
  #unread = null;
  /** @type {RoutecastError | null} */
  #error = null;
  #closed = false;
  #wake = () => {};

  /**
   * @internal
   * @param {((value: T, frame: Frame) => void) | undefined} onValue
   * @param {OnError | undefined} onError
   * @param {() => void} onClose
   */
  constructor(onValue, onError, onClose) {
    this.#onValue = onValue;
    this.#onError = onError ?? (onValue ? (error) => console.error(`Routecast: ${error.message}`) : () => {});
    this.#onClose = onClose;
  }

  /** End it: nothing more comes, and a loop over it ends. */
  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#wake();
    this.#onClose();
  }

  /** The values from now on, for one loop; to leave the loop closes the subscription. */
  async *[Symbol.asyncIterator]() {
    try {
      while (!this.#closed) {
        const unread = this.#unread;
        this.#unread = null;
        if (unread) yield unread.value;
        else if (this.#error) throw this.#error;
        else await /** @type {Promise<void>} */ (new Promise((resolve) => (this.#wake = resolve)));
      }
    } finally {
      this.close();
    }
  }

  /**
   * @internal
   * @param {T} value
   * @param {Frame} frame
   */
  deliver(value, frame) {
    this.#error = null;
    if (this.#onValue) return this.#onValue(value, frame);
    this.#unread = { value };
    this.#wake();
  }

  /**
   * @internal
   * @param {RoutecastError} error
   */
  fail(error) {
    if (!error.retryable) this.#error = error;
    this.#wake();
    this.#onError(error);
  }
}

/** @extends {Subscription<Metrics>} */
class MetricsSubscription extends Subscription {
  /** @type {{document: unknown, position: Position} | null} */
  #known = null;

  /**
   * @param {View} view
   * @param {((metrics: Metrics, frame: Frame) => void) | undefined} onMetrics
   * @param {OnError | undefined} onError
   * @param {() => void} onClose
   */
  constructor(view, onMetrics, onError, onClose) {
    super(onMetrics, onError, onClose);
    this.view = view;
  }

  /** What to ask for, from where it stands. */
  get request() {
    return { type: "subscribe", ...this.view, position: this.#known?.position };
  }

  /**
   * Take a snapshot or a delta. False where it does not fit: then all of it must be asked for anew.
   *
   * @param {any} message
   */
  receive({ type, base, data, position, source, age_ms, timestamp }) {
    let document = data;
    if (type === "delta") {
      const known = this.#known;
      this.#known = null;
      if (known?.position.seq !== base || known?.position.epoch !== position.epoch) return false;
      document = mergePatch(known?.document, data);
    }
    this.#known = { document, position };
    this.deliver({ ...document, timestamp }, { position, source, age_ms, timestamp });
    return true;
  }

  /**
   * Take a document of the default stream.
   *
   * @param {any} document
   */
  receiveDocument(document) {
    if ("error" in document) return this.fail(new RoutecastError("unavailable", document.error, true));
    const { timestamp } = document;
    // Merged into nothing, it is without its nulls, as documents of routecast.v1 are.
    this.deliver(mergePatch({}, document), { position: null, source: null, age_ms: null, timestamp });
  }

  /** The default stream's query for the same. */
  get query() {
    const { fields, filter, window, interval } = this.view;
    const query = new URLSearchParams();
    if (fields) query.set("fields", fields.join(","));
    for (const [name, values] of Object.entries(filter ?? {})) for (const value of values) query.append(name, value);
    if (window) query.set("window", window);
    if (interval) query.set("interval", String(interval));
    return query;
  }
}

/** A connection to one server, and all that is subscribed to over it. */
export class Client {
  #url;
  #token;
  #options;
  /** @type {State} */
  #state = { name: "connecting", again: false };
  /** @type {Set<(state: State) => void>} */
  #listeners = new Set();
  /** @type {Map<string, MetricsSubscription>} by their ids on the wire */
  #subscriptions = new Map();
  #lastId = 0;
  /** @type {Map<Socket, MetricsSubscription | null>} one; on the default stream one a subscription */
  #sockets = new Map();
  /** Whether the server speaks routecast.v1, as far as is known. */
  #v1 = true;
  /** Whether a socket has opened in this attempt. */
  #opened = false;
  #attempt = 0;
  #failures = 0;
  #heardAt = 0;
  /** How long the server asked this client to stay away, in ms. */
  #goodbye = 0;
  /** Until when it did, in ms since 1970. */
  #awayUntil = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} the one thing the present state waits for */
  #timer;
  #ended = new AbortController();

  /**
   * @param {string | URL} url
   * @param {Options} [options]
   */
  constructor(url, { token, ...options } = {}) {
    this.#url = streamUrl(url);
    this.#token = token;
    /** @type {Required<Omit<Options, "token">>} */
    this.#options = { ...DEFAULTS, WebSocket: globalThis.WebSocket, ...options };
    if (!this.#options.WebSocket) throw new TypeError("no WebSocket here: give one, as in connect(url, { WebSocket })");
    const { signal } = this.#ended;
    globalThis.addEventListener?.("online", () => this.#nudge(), { signal });
    globalThis.addEventListener?.("offline", () => this.#ask(), { signal });
    globalThis.document?.addEventListener("visibilitychange", () => this.#nudge(), { signal });
    void this.#connect(false);
  }

  /** How it stands with the connection. */
  get state() {
    return this.#state;
  }

  /**
   * Have a function called each time the state changes; call what is returned to end that.
   *
   * @param {(state: State) => void} listener
   */
  onState(listener) {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /**
   * Follow a view: `onMetrics` is called with each new document. Without it, loop over what is returned.
   *
   * @param {View} [view]
   * @param {(metrics: Metrics, frame: Frame) => void} [onMetrics]
   * @param {OnError} [onError]
   * @returns {Subscription<Metrics>}
   */
  subscribe(view = {}, onMetrics, onError) {
    const subscription = new MetricsSubscription(view, onMetrics, onError, () => this.#leave(subscription));
    this.#request(subscription);
    return subscription;
  }

  /** Try again now, whatever the state: a person asked for it. After `close()` it does nothing. */
  retry() {
    if (!this.#ended.signal.aborted) void this.#connect(true);
  }

  /** End the connection and all subscriptions for good. */
  close() {
    if (this.#ended.signal.aborted) return;
    this.#ended.abort();
    this.#drop();
    for (const subscription of this.#subscriptions.values()) subscription.close();
    this.#enter({ name: "closed", reason: "closed by this side", code: 1000, status: null });
  }

  // -- coming and going ------------------------------------------------------------------------

  /** @param {boolean} again */
  async #connect(again) {
    const attempt = this.#drop();
    this.#enter({ name: "connecting", again });
    this.#after(HANDSHAKE_MS, () => this.#lost(UNREACHABLE));
    const protocols = [V1];
    try {
      const token = typeof this.#token === "function" ? await this.#token() : this.#token;
      if (token) protocols.push(`routecast.bearer.${base64url(token)}`);
    } catch (error) {
      if (attempt === this.#attempt) this.#lost(`there is no token to connect with (${error})`);
      return;
    }
    if (attempt === this.#attempt) this.#openSocket(this.#url, protocols);
  }

  /** Try the default stream, which every server has: one socket for each subscription. */
  #fallBack() {
    this.#drop();
    this.#v1 = false;
    if (this.#subscriptions.size === 0) return this.#enter({ name: "connected", protocol: "default" });
    this.#after(HANDSHAKE_MS, () => this.#lost(UNREACHABLE));
    for (const subscription of this.#subscriptions.values()) this.#openDefault(subscription);
  }

  /** @param {MetricsSubscription} subscription */
  #openDefault(subscription) {
    this.#openSocket(`${this.#url}?${subscription.query}`, [], subscription);
  }

  /**
   * @param {string} url
   * @param {string[]} protocols
   * @param {MetricsSubscription | null} [subscription] whose default stream it is
   */
  #openSocket(url, protocols, subscription = null) {
    /** @type {Socket} */
    let socket;
    try {
      socket = new this.#options.WebSocket(url, protocols);
    } catch (error) {
      return this.#finish(String(error)); // such as ws:// from a page that came over https://
    }
    this.#sockets.set(socket, subscription);
    socket.onopen = () => {
      if (!subscription && socket.protocol !== V1) return this.#fallBack();
      this.#opened = true;
      if (!subscription) for (const each of [...this.#subscriptions.values()]) this.#request(each);
    };
    socket.onmessage = ({ data }) => this.#hear(data, subscription);
    socket.onclose = ({ code, reason }) => this.#closed(url, code, reason);
    // Of a connection that failed, Node.js 20 tells by this alone.
    socket.onerror = () => this.#closed(url, 1006, "");
  }

  /**
   * @param {string} url
   * @param {number} code
   * @param {string} reason
   */
  #closed(url, code, reason) {
    if (!this.#opened) return void this.#learnWhy(url);
    const words = `the server closed the connection (${reason || `close code ${code}`})`;
    if (FINAL_CODES.has(code)) return this.#finish(words, code);
    switch (code) {
      case 1006:
        return this.#lost(UNREACHABLE);
      case RESTART: {
        const told = this.#goodbye || Number(/^reconnect_after_ms=(\d+)$/.exec(reason)?.[1] ?? 0);
        return this.#lost("the server restarts", told, told ? 0 : undefined);
      }
      case UNAUTHENTICATED:
        return typeof this.#token === "function" ? this.#lost(words) : this.#finish(words, code);
      case TOO_MANY_MESSAGES:
        return this.#lost(words, AFTER_TOO_MANY_MS);
      default:
        return this.#lost(words);
    }
  }

  /**
   * Of a socket that never opened a browser tells nothing. The server may, over HTTP.
   *
   * @param {string} url
   */
  async #learnWhy(url) {
    const v1 = this.#v1;
    const attempt = this.#drop();
    const refusal = await askWhy(url);
    if (attempt !== this.#attempt) return;
    if (!refusal) return this.#lost(UNREACHABLE);
    if (refusal.final) return this.#finish(refusal.reason, null, refusal.status);
    // A server that does not know routecast.v1 lets nobody in who asks for it.
    if (v1 && refusal.status < 500) return this.#fallBack();
    this.#lost(refusal.reason, refusal.retryAfter);
  }

  /**
   * @param {string} reason
   * @param {number} [least] ms to stay away, as the server asked
   * @param {number} [more] ms on top of them
   */
  #lost(reason, least = 0, more = retryDelay(this.#failures++, this.#options)) {
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
    const error = new RoutecastError("closed", reason, false);
    for (const subscription of this.#subscriptions.values()) subscription.fail(error);
  }

  /** Let go of what there is; returns the number of a new attempt. */
  #drop() {
    clearTimeout(this.#timer);
    for (const socket of this.#sockets.keys()) silence(socket);
    this.#sockets.clear();
    this.#v1 = true;
    this.#opened = false;
    this.#goodbye = 0;
    return ++this.#attempt;
  }

  /** The network or the person has come back. */
  #nudge() {
    const now = Date.now();
    const { name } = this.#state;
    const asleep = name === "connected" && now - this.#heardAt > Math.max(ASLEEP_MS, 3 * this.#patience);
    const waiting = name === "reconnecting" && now >= this.#awayUntil;
    if (waiting || asleep || name === "stale") void this.#connect(true);
  }

  /**
   * @param {number} delay in ms
   * @param {() => void} action
   */
  #after(delay, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, delay);
  }

  /** @param {State} state */
  #enter(state) {
    this.#state = state;
    for (const listener of this.#listeners) listener(state);
  }

  // -- what is heard ---------------------------------------------------------------------------

  /** Milliseconds of silence that are nothing strange. */
  get #patience() {
    if (this.#v1) return this.#options.patience;
    const intervals = [...this.#subscriptions.values()].map(({ view }) => view.interval ?? DEFAULT_INTERVAL);
    return Math.max(this.#options.patience, 1_500 * Math.max(...intervals));
  }

  /** Ask for a sign of life, and see whether one comes. */
  #ask() {
    if (this.#state.name !== "connected") return;
    if (this.#v1) this.#send({ type: "ping", id: "alive" });
    this.#after(this.#patience, () => {
      this.#enter({ name: "stale", reason: SILENT });
      this.#after(this.#patience, () => this.#lost(SILENT));
    });
  }

  /**
   * @param {unknown} data
   * @param {MetricsSubscription | null} subscription
   */
  #hear(data, subscription) {
    if (typeof data !== "string") return;
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return this.#lost("the server sent what is not JSON");
    }
    this.#heardAt = Date.now();
    this.#after(this.#patience, () => this.#ask());
    if (this.#state.name !== "connected") this.#enter({ name: "connected", protocol: this.#v1 ? "routecast.v1" : "default" });
    if (!subscription) return this.#receive(message);
    this.#failures = 0;
    subscription.receiveDocument(message);
  }

  /** @param {any} message of routecast.v1; of those not known here, nothing is to be made */
  #receive(message) {
    const subscription = this.#subscriptions.get(message.id);
    switch (message.type) {
      case "goodbye":
        this.#goodbye = message.reconnect_after_ms;
        return;
      case "snapshot":
      case "delta":
        this.#failures = 0;
        if (subscription?.receive(message) === false) {
          this.#send({ type: "unsubscribe", id: message.id });
          this.#request(subscription);
        }
        return;
      case "error": {
        const error = new RoutecastError(message.code, message.message, message.retryable);
        if (!message.retryable) this.#subscriptions.delete(message.id);
        return subscription ? subscription.fail(error) : console.error(`Routecast: ${error.message}`);
      }
    }
  }

  // -- what is said ----------------------------------------------------------------------------

  /**
   * Under an id of its own each time, so that nothing of before is taken for an answer.
   *
   * @param {MetricsSubscription} subscription
   */
  #request(subscription) {
    this.#forget(subscription);
    const id = String(++this.#lastId);
    this.#subscriptions.set(id, subscription);
    if (this.#v1) this.#send({ ...subscription.request, id });
    else this.#openDefault(subscription);
  }

  /** @param {MetricsSubscription} subscription */
  #leave(subscription) {
    const id = this.#forget(subscription);
    if (id) this.#send({ type: "unsubscribe", id });
    for (const [socket, its] of this.#sockets) {
      if (its !== subscription) continue;
      this.#sockets.delete(socket);
      silence(socket);
    }
  }

  /**
   * @param {MetricsSubscription} subscription
   * @returns {string | undefined} the id it had
   */
  #forget(subscription) {
    const id = [...this.#subscriptions].find(([, known]) => known === subscription)?.[0];
    if (id) this.#subscriptions.delete(id);
    return id;
  }

  /** @param {object} message of routecast.v1 */
  #send(message) {
    if (!this.#v1 || !this.#opened) return;
    for (const socket of this.#sockets.keys()) socket.send(JSON.stringify(message));
  }
}

/**
 * Let go of a socket, deaf to what it may still say.
 *
 * @param {Socket} socket
 */
function silence(socket) {
  socket.onopen = socket.onmessage = socket.onclose = null;
  socket.onerror = () => {}; // the package `ws` throws where nobody listens
  socket.close(1000);
}

/**
 * The stream's address: `ws` or `wss`, as the server's is `http` or `https`.
 *
 * @param {string | URL} server
 */
function streamUrl(server) {
  const url = new URL(server, globalThis.location?.href);
  if (!/^(http|ws)s?:$/.test(url.protocol)) throw new TypeError(`not the address of a server: ${url.protocol}//…`);
  url.protocol = url.protocol.replace("http", "ws");
  url.pathname = url.pathname.replace(/\/(ws\/metrics)?$/, "") + STREAM;
  url.search = url.hash = "";
  return url.href;
}

/** @param {string} token */
function base64url(token) {
  return btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * Ask at the stream's own address what stood in a socket's way; null where nobody answers.
 *
 * @param {string} url
 */
async function askWhy(url) {
  try {
    // With OPTIONS, unlike GET, a browser names the page's origin to its own server.
    const answer = await fetch(url.replace(/^ws/, "http"), { method: "OPTIONS", signal: AbortSignal.timeout(ASK_WHY_MS) });
    const { ok, status, statusText, headers } = answer;
    const ours = headers.get("content-type") === "application/problem+json";
    const detail = ours ? (await answer.json()).detail : `${status} ${statusText}`.trim();
    const reason = ok ? NO_UPGRADE : `the server refused the connection (${detail})`;
    const retryAfter = 1_000 * Number(headers.get("retry-after") ?? 0) || 0;
    return { reason, status, final: ours && status < 500, retryAfter };
  } catch {
    return null;
  }
}
