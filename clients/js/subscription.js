/**
 * What a client is told under one id, sans I/O: what to ask for, messages in, values out.
 */

/** @typedef {import("./types.js").View} View */
/** @typedef {import("./types.js").Metrics} Metrics */
/** @typedef {import("./types.js").Frame} Frame */
/** @typedef {import("./types.js").Position} Position */
/** @typedef {import("./types.js").HistoryView} HistoryView */
/** @typedef {import("./types.js").History} History */
/** @typedef {(error: RoutecastError) => void} OnError without one, errors go to the console */

/** Seconds between two documents of the default stream, where nobody asks for another number. */
const DEFAULT_INTERVAL = 5;

/** Levels of objects that are merged. A document has three; without a bound, a stack could overflow. */
const MAX_DEPTH = 100;

/** Buckets of a history, where nobody asks for another number, and what counts from 0 in them. */
const DEFAULT_POINTS = 300;
const COUNTS = new Set(["count", "errors", "fallbacks", "input_tokens", "output_tokens"]);

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
 * Apply a JSON Merge Patch (RFC 7396). Neither argument is changed; what stays the same is shared
 * with the result.
 *
 * @param {unknown} target
 * @param {unknown} patch
 * @param {number} [depth] levels above
 * @returns {any}
 */
export function mergePatch(target, patch, depth = 0) {
  if (!isObject(patch) || depth === MAX_DEPTH) return patch;
  // By way of a map: to assign to a key "__proto__" would do something else.
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
   * @param {((value: T, frame: any) => void) | undefined} onValue
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
  /** @type {{document: unknown, position: Position} | null} */
  #known = null;
  /** @type {Position | null} */
  #shown = null;

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
    const known = this.#known;
    const fits = type === "snapshot" || (known && known.position.seq === base && known.position.epoch === position.epoch);
    if (!fits) {
      this.#known = null;
      return false;
    }
    const document = type === "snapshot" ? data : mergePatch(known?.document, data);
    this.#known = { document, position };
    // Another node may be behind the one before. What is shown never goes back.
    if (this.#shown && this.#shown.epoch === position.epoch && this.#shown.seq > position.seq) return true;
    this.#shown = position;
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

  /** Whether nothing more will come. */
  get over() {
    return false;
  }

  /** Seconds between two documents of the default stream. */
  get interval() {
    return this.view.interval ?? DEFAULT_INTERVAL;
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

  /** What to ask for. */
  get request() {
    return { type: "history", ...this.view, from: this.#from };
  }

  /**
   * From where. Who comes back asks for no more buckets than are kept, since of a longer range they
   * would be longer, too; and for one less, since clocks differ.
   */
  get #from() {
    if (!this.#held) return this.view.from;
    const { from, step } = this.#held;
    return new Date(Math.max(Date.parse(from), Date.now() - 1_000 * step * (this.view.points - 1)));
  }

  /** Whether nothing more will come. */
  get over() {
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
 * Put buckets in place of those held from the first of them on, and keep the newest `most`.
 *
 * @param {History} held
 * @param {History} news
 * @param {number} most
 * @returns {History}
 */
function joinHistory(held, news, most) {
  const { step } = news;
  const kept = (Date.parse(news.from) - Date.parse(held.from)) / (1_000 * step);
  if (held.step !== step || !Number.isInteger(kept) || kept < 0 || kept > held.points) return news;
  const points = Math.min(kept + news.points, most);
  const from = new Date(Date.parse(news.from) + 1_000 * step * (news.points - points)).toISOString();
  /** @type {(history: History) => Map<string, Record<string, any>>} */
  const byKey = ({ series }) => new Map(series.map((each) => [each.key, each]));
  const [before, after] = [byKey(held), byKey(news)];
  const series = [...new Set([...before.keys(), ...after.keys()])].map((key) => {
    const [old, fresh] = [before.get(key), after.get(key)];
    const joined = Object.keys({ ...old, ...fresh }).map((field) => {
      if (field === "key") return [field, key];
      const empty = COUNTS.has(field) ? 0 : null; // in buckets of a time when there was no such series
      const [past, present] = [old?.[field] ?? Array(kept).fill(empty), fresh?.[field] ?? Array(news.points).fill(empty)];
      return [field, [...past.slice(0, kept), ...present].slice(-points)];
    });
    return Object.fromEntries(joined);
  });
  return { ...news, from, points, series };
}
