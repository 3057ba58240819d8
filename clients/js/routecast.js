/**
 * Live metrics of a Routecast server, over one WebSocket that reconnects by itself. For browsers,
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
 */

import { ReconnectingSocket } from "./connection.js";
import { UNREACHABLE, askForTicket, streamUrl } from "./close_reasons.js";
import { HistorySubscription, MetricsSubscription, RoutecastError, Subscription } from "./subscription.js";

export { RoutecastError, Subscription };

/** @typedef {import("./types.js").View} View */
/** @typedef {import("./types.js").Metrics} Metrics */
/** @typedef {import("./types.js").Totals} Totals */
/** @typedef {import("./types.js").Frame} Frame */
/** @typedef {import("./types.js").Source} Source */
/** @typedef {import("./types.js").HistoryView} HistoryView */
/** @typedef {import("./types.js").History} History */
/** @typedef {import("./types.js").State} State */
/** @typedef {import("./types.js").Options} Options */
/** @typedef {import("./subscription.js").OnError} OnError */
/** @typedef {MetricsSubscription | HistorySubscription} Topic */

const NO_HISTORY = "the default stream has no history; it will be requested when the server speaks routecast.v1";

const DEFAULTS = { firstDelay: 5_000, longestDelay: 60_000, patience: 10_000, tickets: false };

/**
 * Connect to a server, by its own address or its stream's. The first attempt begins at once, and
 * attempts never stop. Throws a TypeError if the address is invalid, or if there is no WebSocket.
 *
 * @param {string | URL} url such as `https://metrics.example`
 * @param {Options} [options]
 */
export function connect(url, options) {
  return new Client(url, options);
}

/**
 * Ask a server for a ticket, for what can only open an address, such as `EventSource`. It is the
 * parameter `ticket` of the address of a stream, which it opens once, within 30 seconds, and from this
 * machine only: each attempt to connect needs another one. Rejects with a `RoutecastError`, whose
 * `retryable` says whether asking again may help.
 *
 * @param {string | URL} url of the server, as for `connect`
 * @param {string} [token] a token or an API key
 * @returns {Promise<string>}
 */
export async function fetchTicket(url, token) {
  const found = await askForTicket(streamUrl(url), token?.trim());
  if (found.ticket !== null) return found.ticket;
  const { reason, final } = found.verdict ?? { reason: UNREACHABLE, final: false };
  throw new RoutecastError(final ? "forbidden" : "unavailable", reason, !final);
}

/** A connection to one server, with its subscriptions. */
export class Client {
  #socket;
  #settings;
  /** @type {Set<(state: State) => void>} */
  #listeners = new Set();
  /** @type {Map<string, Topic>} by their ids on the wire */
  #topics = new Map();
  /** @type {WeakSet<Topic>} histories that have received NO_HISTORY */
  #waiting = new WeakSet();
  #lastId = 0;

  /**
   * @param {string | URL} url
   * @param {Options} [options]
   */
  constructor(url, options) {
    const settings = (this.#settings = { ...DEFAULTS, WebSocket: globalThis.WebSocket, ...options });
    if (!settings.WebSocket) {
      throw new TypeError("there is no WebSocket: run Node.js 22, or 20 with --experimental-websocket, or pass one: connect(url, { WebSocket })");
    }
    this.#socket = new ReconnectingSocket(streamUrl(url), settings, {
      onState: (state) => this.#notify(state),
      onOpen: () => [...this.#topics.values()].forEach((topic) => this.#request(topic)),
      onMessage: (message, topic) => (topic ? this.#receiveDocument(message, topic) : this.#receive(message)),
    });
  }

  /** The present state of the connection. */
  get state() {
    return this.#socket.state;
  }

  /**
   * Call a function with the present state, after the running code, and then with each new state.
   * Call the returned function to stop that.
   *
   * @param {(state: State) => void} listener
   */
  onState(listener) {
    let wanted = true;
    queueMicrotask(() => {
      if (!wanted) return;
      this.#listeners.add(listener);
      listener(this.state);
    });
    return () => {
      wanted = false;
      this.#listeners.delete(listener);
    };
  }

  /**
   * Follow a view. `onMetrics` is called with each new document. Without it, loop over the returned
   * subscription.
   *
   * @param {View} [view]
   * @param {(metrics: Metrics, frame: Frame) => void} [onMetrics]
   * @param {OnError} [onError]
   * @returns {Subscription<Metrics>}
   */
  subscribe(view = {}, onMetrics, onError) {
    const topic = new MetricsSubscription(view, onMetrics, onError, () => this.#unsubscribe(topic));
    this.#request(topic);
    return topic;
  }

  /**
   * Get a history. `onHistory` is called with the requested buckets; with `follow`, again as further
   * buckets close, with the newest `points` of all. Without `onHistory`, loop over the returned
   * subscription.
   *
   * @param {HistoryView} view
   * @param {(history: History) => void} [onHistory]
   * @param {OnError} [onError]
   * @returns {Subscription<History>}
   */
  history(view, onHistory, onError) {
    const topic = new HistorySubscription(view, onHistory, onError, () => this.#unsubscribe(topic));
    this.#request(topic);
    return topic;
  }

  /** Connect again now, in any state. After `close()` it does nothing. */
  retry() {
    this.#socket.retry();
  }

  /** End the connection and all subscriptions for good. */
  close() {
    const topics = [...this.#topics.values()];
    this.#topics.clear();
    this.#socket.close();
    for (const topic of topics) topic.close();
  }

  /** @param {State} state */
  #notify(state) {
    for (const listener of this.#listeners) listener(state);
    if (state.name !== "closed") return;
    const error = new RoutecastError("closed", state.reason, false);
    for (const topic of this.#topics.values()) topic.fail(error);
  }

  // -- messages of the server ------------------------------------------------------------------

  /** @param {any} message of routecast.v1; unknown types are ignored */
  #receive(message) {
    const topic = this.#topics.get(message.id);
    switch (message.type) {
      case "goodbye":
        return this.#socket.onGoodbye(message.reconnect_after_ms);
      case "token_expiring":
        return void this.#socket.refresh();
      case "snapshot":
      case "delta":
      case "history":
        this.#socket.resetBackoff();
        return topic && this.#receiveNews(message, topic);
      case "error": {
        const error = new RoutecastError(message.code, message.message, message.retryable);
        return topic ? this.#fail(topic, error, message.id) : console.error(`Routecast: ${error.message}`);
      }
    }
  }

  /**
   * @param {Topic} topic
   * @param {RoutecastError} error
   * @param {string} id
   */
  #fail(topic, error, id) {
    if (!error.retryable) this.#topics.delete(id);
    else if (topic instanceof HistorySubscription) {
      // The server itself resumes a view when it can; a history must be requested again.
      setTimeout(() => this.#topics.get(id) === topic && this.#request(topic), this.#settings.firstDelay);
    }
    topic.fail(error);
  }

  /**
   * @param {any} message
   * @param {Topic} topic
   */
  #receiveNews(message, topic) {
    this.#waiting.delete(topic);
    if (!topic.receive(message)) {
      this.#socket.send({ type: "unsubscribe", id: message.id });
      this.#request(topic);
    } else if (topic.isOver) {
      this.#topics.delete(message.id);
      topic.close();
    }
  }

  /**
   * @param {any} document of the default stream
   * @param {any} topic
   */
  #receiveDocument(document, topic) {
    this.#socket.resetBackoff();
    topic.receiveDocument(document);
  }

  // -- messages of the client ------------------------------------------------------------------

  /**
   * Each request has a new id, so that no message for an earlier request is taken for its answer.
   *
   * @param {Topic} topic
   */
  #request(topic) {
    this.#forget(topic);
    const id = String(++this.#lastId);
    this.#topics.set(id, topic);
    if (this.#socket.v1) return this.#socket.send({ ...topic.request, id });
    if (topic instanceof MetricsSubscription) return this.#socket.openStream(topic, topic.query, topic.interval);
    this.#socket.requireV1();
    if (this.#waiting.has(topic)) return;
    this.#waiting.add(topic);
    topic.fail(new RoutecastError("not_supported", NO_HISTORY, true));
  }

  /** @param {Topic} topic */
  #unsubscribe(topic) {
    const id = this.#forget(topic);
    if (id) this.#socket.send({ type: "unsubscribe", id });
    this.#socket.closeStream(topic);
  }

  /**
   * @param {Topic} topic
   * @returns {string | undefined} the id it had
   */
  #forget(topic) {
    const id = [...this.#topics].find(([, other]) => other === topic)?.[0];
    if (id) this.#topics.delete(id);
    return id;
  }
}
