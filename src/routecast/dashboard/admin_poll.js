/** Asks again and again: each second while the page is visible, rarely while it is hidden. */

const VISIBLE_MS = 1_000;
const HIDDEN_MS = 30_000;

/** After failures, the pause doubles up to this. */
const LONGEST_MS = 15_000;

/** Runs one action at a time. */
export class AdminPoll {
  #action;
  #failures = 0;
  #runs = false;
  #again = false;
  #stopped = true;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /** @param {() => Promise<boolean>} action returns whether it succeeded */
  constructor(action) {
    this.#action = action;
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !this.#stopped) this.now();
    });
  }

  /** Act now; if an action runs, once more after it. */
  now() {
    this.#stopped = false;
    this.#again = this.#runs;
    if (!this.#runs) void this.#run();
  }

  /** Do not act any more, until `now` is called. */
  stop() {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  async #run() {
    clearTimeout(this.#timer);
    this.#runs = true;
    const succeeded = await this.#action();
    this.#runs = false;
    this.#failures = succeeded ? 0 : this.#failures + 1;
    if (this.#stopped) return;
    if (this.#again) return this.now();
    const usual = document.hidden ? HIDDEN_MS : VISIBLE_MS;
    const pause = Math.max(usual, Math.min(VISIBLE_MS * 2 ** this.#failures, LONGEST_MS));
    this.#timer = setTimeout(() => void this.#run(), this.#failures ? pause : usual);
  }
}
