/** Decisions per second, from the totals and times of successive documents. */

/** @typedef {{at: number, rate: number | null}} RatePoint `at` in ms since 1970; a null rate is a gap */

/** How long points are kept. */
export const KEPT_MS = 5 * 60_000;

/** Two documents closer than this are one: over a few milliseconds any rate is noise. */
const SHORTEST_STEP_MS = 500;

/** Between documents further apart the rate is unknown; a server sends one every 25 s. */
const LONGEST_STEP_MS = 30_000;

/** The last five minutes, oldest first. */
export class RateHistory {
  /** @type {RatePoint[]} */
  points = [];
  /** @type {{at: number, total: number} | undefined} */
  #last;
  /** When the newest document was made; points after that are assumed. */
  #sureAt = 0;

  /**
   * Add the next document's total. A long silence is a gap, and so is a total that fell because the
   * database was replaced.
   *
   * @param {number} total decisions ever
   * @param {number} at ms since 1970, by the server's clock
   */
  add(total, at) {
    // The document was on its way when the total was assumed to be unchanged.
    if (at >= this.#sureAt) this.#forgetAssumed(at - SHORTEST_STEP_MS);
    this.#sureAt = at;
    this.#put(total, at);
  }

  /**
   * Note that nothing has come: as far as is known, the total is unchanged.
   *
   * @param {number} total
   * @param {number} at
   */
  assume(total, at) {
    if (this.#last) this.#put(total, at);
  }

  /** The connection is lost: assumed points are unknown again, and the next document follows a gap. */
  interrupt() {
    this.#forgetAssumed(this.#sureAt);
    this.#last = undefined;
  }

  /** @param {number} from ms since 1970 */
  #forgetAssumed(from) {
    const kept = this.points.filter(({ at }) => at <= Math.max(from, this.#sureAt));
    if (kept.length < this.points.length && this.#last) this.#last.at = kept.at(-1)?.at ?? from;
    this.points = kept;
  }

  /**
   * @param {number} total
   * @param {number} at
   */
  #put(total, at) {
    const last = this.#last;
    const step = last ? at - last.at : Infinity;
    if (last && step >= 0 && step < SHORTEST_STEP_MS && total >= last.total) return;
    if (step < 0) this.points = []; // the server's clock was set back: old times mean nothing now
    this.#last = { at, total };
    const known = last && step > 0 && step <= LONGEST_STEP_MS && total >= last.total;
    this.points.push({ at, rate: known ? ((total - last.total) * 1_000) / step : null });
    const oldest = at - KEPT_MS;
    const first = this.points.findIndex((point) => point.at >= oldest);
    if (first > 0) this.points.splice(0, first);
  }
}
