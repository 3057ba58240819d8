/** Polls the server's health every ten seconds. */

/** @typedef {import("./page_view.js").Health} Health */

const PERIOD_MS = 10_000;
const PATIENCE_MS = 5_000;

/** Polls `/health` between `start()` and `stop()`. */
export class HealthPoll {
  #url;
  #onHealth;
  #active = false;
  #isPolling = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #timer;

  /**
   * @param {string} url
   * @param {(health: Health | null) => void} onHealth called with each answer; null without one
   */
  constructor(url, onHealth) {
    this.#url = url;
    this.#onHealth = onHealth;
  }

  /** Poll now, and then every ten seconds. */
  start() {
    this.#active = true;
    void this.#poll();
  }

  stop() {
    this.#active = false;
    clearTimeout(this.#timer);
  }

  async #poll() {
    if (this.#isPolling) return;
    clearTimeout(this.#timer);
    this.#isPolling = true;
    const health = await this.#fetch();
    this.#isPolling = false;
    if (!this.#active) return;
    this.#onHealth(health);
    this.#timer = setTimeout(() => void this.#poll(), PERIOD_MS);
  }

  /**
   * A server that cannot serve anything answers 503, with its health in the body. One that knows
   * its users tells most of them only its version.
   *
   * @returns {Promise<Health | null>}
   */
  async #fetch() {
    try {
      const options = { cache: /** @type {const} */ ("no-store"), signal: AbortSignal.timeout(PATIENCE_MS) };
      const answer = await fetch(this.#url, options);
      const health = await answer.json();
      return typeof health?.version === "string" ? health : null;
    } catch {
      return null;
    }
  }
}
