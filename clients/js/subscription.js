/**
 * The state of one subscription, sans I/O: the request to send, messages in, values out.
 */

/** @typedef {import("./types.js").View} View */
/** @typedef {import("./types.js").Metrics} Metrics */
/** @typedef {import("./types.js").Frame} Frame */
/** @typedef {import("./types.js").Position} Position */
/** @typedef {import("./types.js").HistoryView} HistoryView */
/** @typedef {import("./types.js").History} History */
/** @typedef {(error: RoutecastError) => void} OnError without one, errors go to the console */

/** Seconds between two documents of the default stream, if the view does not name a number. */
const DEFAULT_INTERVAL = 5;

/** Levels of objects that are merged. A document has three; without a bound, a stack could overflow. */
const MAX_DEPTH = 100;

/** Buckets of a history, if the view does not name a number. */
const DEFAULT_POINTS = 300;

/** Columns whose empty buckets are 0; those of the others are null. */
const COUNTS = new Set(["count", "errors", "fallbacks", "input_tokens", "output_tokens"]);

/** An error of the server. If it is `retryable`, the subscription stays, and may be served later. */
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
 * Apply a JSON Merge Patch (RFC 7396). Neither argument is changed; the result shares the parts that
 * stay the same with `target`.
 *
 * @param {unknown} target
 * @param {unknown} patch
 * @param {number} [depth] levels above
 * @returns {any}
 */
export function mergePatch(target, patch, depth = 0) {
  if (!isObject(patch) || depth === MAX_DEPTH) return patch;
  // A map, because an assignment to the key "__proto__" of an object would set its prototype.
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) merged.delete(key);
    else merged.set(key, mergePatch(merged.get(key), value, depth + 1));
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
 * A subscription to values, by a callback or a loop. A slow loop gets fewer and newer values: only
 * the newest one waits for it.
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
   * @param {((value: T, frame: any) => void) | undefined} onValue
   * @param {OnError | undefined} onError
   * @param {() => void} onClose
   */
  constructor(onValue, onError, onClose) {
    this.#onValue = onValue;
    this.#onError = onError ?? (onValue ? (error) => console.error(`Routecast: ${error.message}`) : () => {});
    this.#onClose = onClose;
  }

  /** End the subscription: no value follows, and a loop over it ends. */
  close() {
    if (this.#closed) return;
    this.#closed = true;
    this.#wake();
    this.#onClose();
  }

  /** The values from now on, for one loop. Leaving the loop closes the subscription. */
  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        const unread = this.#unread;
        this.#unread = null;
        if (unread) yield unread.value;
        else if (this.#error) throw this.#error;
        else if (this.#closed) return;
        else await /** @type {Promise<void>} */ (new Promise((resolve) => (this.#wake = resolve)));
      }
    } finally {
      this.close();
    }
  }

  /**
   * @internal
   * @param {T} value
   * @param {Frame} [frame]
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
export class MetricsSubscription extends Subscription {
  /** @type {{document: unknown, position: Position} | null} the base of the next delta */
  #base = null;
  /** @type {Position | null} of the newest document that was delivered */
  #delivered = null;

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

  /** The message that requests the view, from the position of the newest document. */
  get request() {
    return { type: "subscribe", ...this.view, position: this.#base?.position };
  }

  /**
   * Receive a snapshot or a delta. False if the delta has another base: then the caller must
   * subscribe again, to get a snapshot.
   *
   * @param {any} message
   */
  receive({ type, base, data, position, source, age_ms, timestamp }) {
    const held = this.#base;
    const fits = type === "snapshot" || (held && held.position.seq === base && held.position.epoch === position.epoch);
    if (!fits) {
      this.#base = null;
      return false;
    }
    const document = type === "snapshot" ? data : mergePatch(held?.document, data);
    this.#base = { document, position };
    // After a reconnect, another node may be behind. Delivered documents never go back in time.
    if (this.#delivered && this.#delivered.epoch === position.epoch && this.#delivered.seq > position.seq) return true;
    this.#delivered = position;
    this.deliver({ ...document, timestamp }, { position, source, age_ms, timestamp });
    return true;
  }

  /**
   * Receive a document of the default stream.
   *
   * @param {any} document
   */
  receiveDocument(document) {
    if ("error" in document) return this.fail(new RoutecastError("unavailable", document.error, true));
    const { timestamp } = document;
    // The merge removes nulls: documents of routecast.v1 have none.
    this.deliver(mergePatch({}, document), { position: null, source: null, age_ms: null, timestamp });
  }

  /** Whether no value follows. */
  get isOver() {
    return false;
  }

  /** Seconds between two documents of the default stream. */
  get interval() {
    return this.view.interval ?? DEFAULT_INTERVAL;
  }

  /** The default stream's query for the same view. */
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

/** @extends {Subscription<History>} */
export class HistorySubscription extends Subscription {
  /** @type {History | null} */
  #held = null;

  /**
   * @param {HistoryView} view
   * @param {((history: History) => void) | undefined} onHistory
   * @param {OnError | undefined} onError
   * @param {() => void} onClose
   */
  constructor(view, onHistory, onError, onClose) {
    super(onHistory, onError, onClose);
    /** @type {HistoryView & {points: number}} */
    this.view = { points: DEFAULT_POINTS, ...view };
  }

  /** The message that requests the history. */
  get request() {
    return { type: "history", ...this.view, from: this.#from };
  }

  /**
   * Where the range begins. After a reconnect it covers no more buckets than are kept, because the
   * server makes the buckets of a longer range longer; and one less, because clocks differ.
   */
  get #from() {
    if (!this.#held) return this.view.from;
    const { from, step } = this.#held;
    return new Date(Math.max(Date.parse(from), Date.now() - 1_000 * step * (this.view.points - 1)));
  }

  /** Whether no value follows. */
  get isOver() {
    return this.#held !== null && !this.view.follow;
  }

  /** @param {any} message */
  receive({ position, step, from, points, series }) {
    const news = { position, step, from, points, series };
    this.#held = this.#held ? joinHistory(this.#held, news, this.view.points) : news;
    this.deliver(this.#held);
    return true;
  }
}

/**
 * Replace the held buckets from the first new one on, and keep the newest `max`.
 *
 * @param {History} held
 * @param {History} news
 * @param {number} max
 * @returns {History}
 */
function joinHistory(held, news, max) {
  const { step } = news;
  const kept = (Date.parse(news.from) - Date.parse(held.from)) / (1_000 * step);
  if (held.step !== step || !Number.isInteger(kept) || kept < 0 || kept > held.points) return news;
  const points = Math.min(kept + news.points, max);
  const from = new Date(Date.parse(news.from) + 1_000 * step * (news.points - points)).toISOString();
  /** @type {(history: History) => Map<string, Record<string, any>>} */
  const byKey = ({ series }) => new Map(series.map((each) => [each.key, each]));
  const [before, after] = [byKey(held), byKey(news)];
  const series = [...new Set([...before.keys(), ...after.keys()])].map((key) => {
    const [old, fresh] = [before.get(key), after.get(key)];
    const joined = Object.keys({ ...old, ...fresh }).map((field) => {
      if (field === "key") return [field, key];
      const empty = COUNTS.has(field) ? 0 : null; // for buckets in which the series does not exist
      const [past, present] = [old?.[field] ?? Array(kept).fill(empty), fresh?.[field] ?? Array(news.points).fill(empty)];
      return [field, [...past.slice(0, kept), ...present].slice(-points)];
    });
    return Object.fromEntries(joined);
  });
  return { ...news, from, points, series };
}
