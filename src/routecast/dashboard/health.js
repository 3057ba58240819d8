/** Polls the server's health every ten seconds. */

/** @typedef {import("./page_view.js").Health} Health */

const PERIOD_MS = 10_000;
const PATIENCE_MS = 5_000;

/** Polls `/health` between `start()` and `stop()`. */
export class HealthPoll {
  #url;
  #onHealth;
  #active = false;
  #asking = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {string} url
   * @param {(health: Health | null) => void} onHealth called with each answer; null where there was none
   */
  constructor(url, onHealth) {
    this.#url = url;
    this.#onHealth = onHealth;
  }

  /** Ask now, and from then on each ten seconds. */
  start() {
    this.#active = true;
    void this.#poll();
  }

  stop() {
    this.#active = false;
    clearTimeout(this.#timer);
  }

  async #poll() {
    if (this.#asking) return;
    clearTimeout(this.#timer);
    this.#asking = true;
    const health = await this.#ask();
    this.#asking = false;
    if (!this.#active) return;
    this.#onHealth(health);
    this.#timer = setTimeout(() => void this.#poll(), PERIOD_MS);
  }

  /**
   * A server that cannot serve anything answers 503, with its health in the body.
   *
   * @returns {Promise<Health | null>}
   */
  async #ask() {
    try {
      const options = { cache: /** @type {const} */ ("no-store"), signal: AbortSignal.timeout(PATIENCE_MS) };
      const answer = await fetch(this.#url, options);
      const health = await answer.json();
      return typeof health?.source === "string" ? health : null;
    } catch {
      return null;
    }
  }
}
