/**
 * Routecast metrics in React.
 *
 *     const { metrics, state } = useMetrics("https://metrics.example", { fields: ["total_decisions"], interval: 1 });
 */

import { useCallback, useSyncExternalStore } from "react";

import { connect } from "./routecast.js";

/** @typedef {import("./types.js").View} View */
/** @typedef {import("./types.js").Options} Options */

/**
 * @typedef {Object} Shown
 * @property {import("./types.js").Metrics | null} metrics the newest document; null before the first
 * @property {import("./types.js").Frame | null} frame its position, source and age
 * @property {import("./types.js").State} state of the connection
 * @property {import("./routecast.js").RoutecastError | null} error the server's reason why there is no newer document
 */

/** @type {Shown} */
const NOTHING = { metrics: null, frame: null, state: { name: "connecting", again: false }, error: null };

/** How long an unused connection is kept, in ms: to unmount and mount again costs no new one. */
const LINGER_MS = 1_000;

/**
 * Objects by key, each shared by its users, and closed a moment after the last one released it.
 *
 * @template {{close: () => void}} T
 */
class Shared {
  /** @type {Map<string, {object: T, users: number}>} */
  #entries = new Map();

  /**
   * @param {string} key
   * @param {() => T} make
   */
  acquire(key, make) {
    const entry = this.#entries.get(key) ?? { object: make(), users: 0 };
    this.#entries.set(key, entry);
    entry.users++;
    return entry.object;
  }

  /** @param {string} key */
  release(key) {
    const entry = this.#entries.get(key);
    if (!entry || --entry.users > 0) return;
    setTimeout(() => {
      if (entry.users > 0 || this.#entries.get(key) !== entry) return;
      this.#entries.delete(key);
      entry.object.close();
    }, LINGER_MS);
  }

  /** @param {string} key */
  get(key) {
    return this.#entries.get(key)?.object;
  }
}

/** @type {Shared<import("./routecast.js").Client>} by URL */
const clients = new Shared();

/** @type {Shared<Feed>} by URL and view */
const feeds = new Shared();

/** One view of one server, for all components that show it. */
class Feed {
  shown = NOTHING;
  /** @type {Set<() => void>} */
  listeners = new Set();
  #url;
  #subscription;
  #unwatch;

  /**
   * @param {string} url
   * @param {View} view
   * @param {Options} options
   */
  constructor(url, view, options) {
    this.#url = url;
    const client = clients.acquire(url, () => connect(url, options));
    this.#unwatch = client.onState((state) => this.#show({ state }));
    this.#subscription = client.subscribe(
      view,
      (metrics, frame) => this.#show({ metrics, frame, error: null }),
      (error) => this.#show({ error }),
    );
  }

  close() {
    this.#subscription.close();
    this.#unwatch();
    clients.release(this.#url);
  }

  /** @param {Partial<Shown>} news */
  #show(news) {
    this.shown = { ...this.shown, ...news };
    for (const listener of this.listeners) listener();
  }
}

/**
 * Follow a view of a server for as long as the component is mounted. Components with the same URL
 * share one connection, and those with the same view share one subscription, too. The first
 * component's `options` apply.
 *
 * @param {string} url the server's address
 * @param {View & Options} [options] the view, and how to connect
 * @returns {Shown}
 */
export function useMetrics(url, { fields, filter, window, interval, ...options } = {}) {
  const view = JSON.stringify({ fields, filter, window, interval });
  const key = `${url} ${view}`;
  const subscribe = useCallback(
    (/** @type {() => void} */ listener) => {
      const feed = feeds.acquire(key, () => new Feed(url, JSON.parse(view), options));
      feed.listeners.add(listener);
      return () => {
        feed.listeners.delete(listener);
        feeds.release(key);
      };
    },
    [key],
  );
  return useSyncExternalStore(subscribe, () => feeds.get(key)?.shown ?? NOTHING, () => NOTHING);
}
