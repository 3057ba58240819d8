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
 */

import { Line } from "./connection.js";
import { streamUrl } from "./close_reasons.js";
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

const WAITS = "the server is read by its default stream, which has no history: it is asked for again once routecast.v1 is there";

const DEFAULTS = { firstDelay: 5_000, longestDelay: 60_000, patience: 10_000 };

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

/** A connection to one server, and all that is subscribed to over it. */
export class Client {
  #line;
  #settings;
  /** @type {Set<(state: State) => void>} */
  #listeners = new Set();
  /** @type {Map<string, Topic>} by their ids on the wire */
  #topics = new Map();
  /** @type {WeakSet<Topic>} histories that were told why they wait */
  #waiting = new WeakSet();
  #lastId = 0;

  /**
   * @param {string | URL} url
   * @param {Options} [options]
   */
  constructor(url, options) {
    const settings = (this.#settings = { ...DEFAULTS, WebSocket: globalThis.WebSocket, ...options });
    if (!settings.WebSocket) {
      throw new TypeError("no WebSocket here: run Node.js 22, or 20 with --experimental-websocket, or give one, as in connect(url, { WebSocket })");
    }
    this.#line = new Line(streamUrl(url), settings, {
      onState: (state) => this.#tell(state),
      onOpen: () => [...this.#topics.values()].forEach((topic) => this.#ask(topic)),
      onMessage: (message, topic) => (topic ? this.#receiveDocument(message, topic) : this.#receive(message)),
    });
  }

  /** How it stands with the connection. */
  get state() {
    return this.#line.state;
  }

  /**
   * Have a function called with the state: soon with the present one, then each time it changes.
   * Call what is returned to end that.
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
   * Follow a view: `onMetrics` is called with each new document. Without it, loop over what is
   * returned.
   *
   * @param {View} [view]
   * @param {(metrics: Metrics, frame: Frame) => void} [onMetrics]
   * @param {OnError} [onError]
   * @returns {Subscription<Metrics>}
   */
  subscribe(view = {}, onMetrics, onError) {
    const topic = new MetricsSubscription(view, onMetrics, onError, () => this.#leave(topic));
    this.#ask(topic);
    return topic;
  }

  /**
   * Look back: `onHistory` is called with the buckets asked for. With `follow` it is called again as
   * more close, with those in their place; the newest `points` are held. Without it, loop over what
   * is returned.
   *
   * @param {HistoryView} view
   * @param {(history: History) => void} [onHistory]
   * @param {OnError} [onError]
   * @returns {Subscription<History>}
   */
  history(view, onHistory, onError) {
    const topic = new HistorySubscription(view, onHistory, onError, () => this.#leave(topic));
    this.#ask(topic);
    return topic;
  }

  /** Try again now, whatever the state: a person asked for it. After `close()` it does nothing. */
  retry() {
    this.#line.retry();
  }

  /** End the connection and all subscriptions for good. */
  close() {
    const topics = [...this.#topics.values()];
    this.#topics.clear();
    this.#line.close();
    for (const topic of topics) topic.close();
  }

  /** @param {State} state */
  #tell(state) {
    for (const listener of this.#listeners) listener(state);
    if (state.name !== "closed") return;
    const error = new RoutecastError("closed", state.reason, false);
    for (const topic of this.#topics.values()) topic.fail(error);
  }

  // -- what is heard ---------------------------------------------------------------------------

  /** @param {any} message of routecast.v1; of those not known here, nothing is to be made */
  #receive(message) {
    const topic = this.#topics.get(message.id);
    switch (message.type) {
      case "goodbye":
        return this.#line.sayGoodbye(message.reconnect_after_ms);
      case "snapshot":
      case "delta":
      case "history":
        this.#line.succeeded();
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
      // Of a view the server tells more by itself when it can; a history must be asked for again.
      setTimeout(() => this.#topics.get(id) === topic && this.#ask(topic), this.#settings.firstDelay);
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
      this.#line.send({ type: "unsubscribe", id: message.id });
      this.#ask(topic);
    } else if (topic.over) {
      this.#topics.delete(message.id);
      topic.close();
    }
  }

  /**
   * @param {any} document of the default stream
   * @param {any} topic
   */
  #receiveDocument(document, topic) {
    this.#line.succeeded();
    topic.receiveDocument(document);
  }

  // -- what is said ----------------------------------------------------------------------------

  /**
   * Under an id of its own each time, so that nothing of before is taken for an answer.
   *
   * @param {Topic} topic
   */
  #ask(topic) {
    this.#forget(topic);
    const id = String(++this.#lastId);
    this.#topics.set(id, topic);
    if (this.#line.v1) return this.#line.send({ ...topic.request, id });
    if (topic instanceof MetricsSubscription) return this.#line.openStream(topic, topic.query, topic.interval);
    this.#line.awaitV1();
    if (this.#waiting.has(topic)) return;
    this.#waiting.add(topic);
    topic.fail(new RoutecastError("not_supported", WAITS, true));
  }

  /** @param {Topic} topic */
  #leave(topic) {
    const id = this.#forget(topic);
    if (id) this.#line.send({ type: "unsubscribe", id });
    this.#line.closeStream(topic);
  }

  /**
   * @param {Topic} topic
   * @returns {string | undefined} the id it had
   */
  #forget(topic) {
    const id = [...this.#topics].find(([, known]) => known === topic)?.[0];
    if (id) this.#topics.delete(id);
    return id;
  }
}
