/**
 * One WebSocket that comes back by itself. It knows sockets and timers, and nothing of the page.
 *
 * connecting ─► live ◄─► silent      a frame makes it live; no frame for a while makes it silent
 *     ▲           │         │
 *     │           ▼         ▼
 *     └──────── waiting ◄───┘        a lost socket waits, longer each time, and connects again
 *
 * A close code that says "do not come back" ends in `refused`; only `retry()` leaves that. Of a
 * socket that never opened the browser tells nothing, so it waits, and meanwhile asks why: the
 * answer may be final, too.
 */

/**
 * @typedef {{phase: "connecting", again: boolean}
 *   | {phase: "live"}
 *   | {phase: "silent"}
 *   | {phase: "waiting", until: number, reason: string}
 *   | {phase: "refused", reason: string, barred: boolean}} StreamState `until` is in ms since 1970
 */

/** @typedef {import("./refusal.js").Refusal} Refusal */

/**
 * @typedef {Object} StreamOptions
 * @property {number} interval seconds between two frames, as asked of the server
 * @property {(text: string) => void} onText called for each text frame
 * @property {(state: StreamState) => void} onState called when the state changes
 * @property {() => Promise<Refusal | null>} askWhy asked when a socket never opened
 */

const FIRST_RETRY_MS = 5_000;
const RETRY_GROWTH = 1.6;
const RETRY_JITTER = 0.2;
const LONGEST_RETRY_MS = 60_000;

/** A handshake that hangs is given up: the browser itself would wait for minutes. */
const HANDSHAKE_MS = 10_000;

/** Intervals without a frame until the stream is called silent. */
const SILENT_AFTER = 3;

/** Intervals without a frame until the socket is held for dead: a vanished peer sends no close. */
const DEAD_AFTER = 20;

/** Close codes after which a new attempt would end the same way. */
const FINAL_CODES = new Set([1003, 1007, 1008, 1009, 4400, 4403]);

/**
 * Milliseconds to wait before the next attempt: 5 s, growing by 1.6, 60 s at the very most, spread
 * by ±20 % so that a thousand pages do not come back in the same instant.
 *
 * @param {number} failures attempts that failed in a row, from 0
 * @param {number} [random] 0 to 1
 */
export function retryDelay(failures, random = Math.random()) {
  const longest = LONGEST_RETRY_MS / (1 + RETRY_JITTER);
  const delay = Math.min(FIRST_RETRY_MS * RETRY_GROWTH ** failures, longest);
  return delay * (1 + RETRY_JITTER * (2 * random - 1));
}

/** A stream of text frames. Call `start()` once; it runs until the page goes. */
export class Stream {
  #url;
  #options;
  #failures = 0;
  #opened = false;
  /** @type {StreamState} */
  #state = { phase: "connecting", again: false };
  /** @type {WebSocket | undefined} */
  #socket;
  /** @type {ReturnType<typeof setTimeout> | undefined} the one thing the present state waits for */
  #timer;

  /**
   * @param {string} url
   * @param {StreamOptions} options
   */
  constructor(url, options) {
    this.#url = url;
    this.#options = options;
  }

  start() {
    this.#connect(false);
  }

  /** Try again now, whatever the state: a person asked for it. */
  retry() {
    this.#connect(true);
  }

  /** Try again now if the stream is not well: the network or the person has come back. */
  nudge() {
    if (this.#state.phase === "waiting" || this.#state.phase === "silent") this.#connect(true);
  }

  /** @param {boolean} again */
  #connect(again) {
    this.#drop();
    this.#enter({ phase: "connecting", again });
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    this.#opened = false;
    this.#after(HANDSHAKE_MS, () => this.#lost());
    socket.onopen = () => {
      this.#opened = true;
      this.#expectFrame();
    };
    socket.onmessage = (event) => this.#receive(event.data);
    socket.onclose = (event) => this.#closed(event);
  }

  /** @param {unknown} data */
  #receive(data) {
    if (typeof data !== "string") return;
    this.#failures = 0;
    this.#expectFrame();
    if (this.#state.phase !== "live") this.#enter({ phase: "live" });
    this.#options.onText(data);
  }

  #expectFrame() {
    const interval = this.#options.interval * 1_000;
    this.#after(SILENT_AFTER * interval, () => {
      this.#after((DEAD_AFTER - SILENT_AFTER) * interval, () => this.#lost());
      this.#enter({ phase: "silent" });
    });
  }

  /** @param {CloseEvent} event */
  #closed(event) {
    if (!FINAL_CODES.has(event.code)) return this.#lost();
    this.#refuse(`the server refused the connection (${event.reason || `close code ${event.code}`})`);
  }

  /**
   * @param {string} reason
   * @param {boolean} [barred]
   */
  #refuse(reason, barred = false) {
    this.#drop();
    this.#enter({ phase: "refused", reason, barred });
  }

  #lost() {
    this.#drop();
    const delay = retryDelay(this.#failures++);
    this.#after(delay, () => this.#connect(true));
    const until = Date.now() + delay;
    this.#enter({ phase: "waiting", until, reason: "the server cannot be reached" });
    if (!this.#opened) void this.#learnWhy(until);
  }

  /** @param {number} until when the next attempt is due, in ms since 1970 */
  async #learnWhy(until) {
    const waiting = this.#state;
    const refusal = await this.#options.askWhy();
    if (refusal === null || this.#state !== waiting) return;
    if (refusal.final) this.#refuse(refusal.reason, refusal.barred);
    else this.#enter({ phase: "waiting", until, reason: refusal.reason });
  }

  /** Let go of the socket, deaf to what it may still say. */
  #drop() {
    clearTimeout(this.#timer);
    if (!this.#socket) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close();
    this.#socket = undefined;
  }

  /**
   * @param {number} delay in ms
   * @param {() => void} action
   */
  #after(delay, action) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(action, delay);
  }

  /** @param {StreamState} state */
  #enter(state) {
    this.#state = state;
    this.#options.onState(state);
  }
}
