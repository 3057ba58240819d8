/** Decisions per second, from the totals and times of successive documents. */

/** @typedef {{at: number, rate: number | null}} RatePoint `at` in ms since 1970; a null rate is a gap */

/** How far back the movement is kept. */
export const KEPT_MS = 5 * 60_000;

/** Two documents closer than this are one: over a few milliseconds any rate is noise. */
const SHORTEST_STEP_MS = 500;

/** Documents further apart say nothing about the time between them; a server sends one each 25 s. */
const LONGEST_STEP_MS = 30_000;

/** The last five minutes, oldest first. */
export class RateHistory {
  /** @type {RatePoint[]} */
  points = [];
  /** @type {{at: number, total: number} | undefined} */
  #last;

  /** What comes next says nothing about the time until then. */
  interrupt() {
    this.#last = undefined;
  }

  /**
   * Take the next document's total. A long silence, or a total that fell since the database was
   * replaced, is a gap.
   *
   * @param {number} total decisions ever
   * @param {number} at ms since 1970, by the server's clock
   */
  add(total, at) {
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
