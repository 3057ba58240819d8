/** Draws decisions per second as one line over time, in an SVG that is 1000 wide and 100 high. */

import { formatCount, formatRate } from "./format.js";
import { KEPT_MS } from "./rates.js";
import { part, setText } from "./rows.js";

/** @typedef {import("./rates.js").RatePoint} RatePoint */

const WIDTH = 1_000;
const HEIGHT = 100;

/** The line starts out over one minute, so that a page just opened has something to show. */
const SPANS_MS = [60_000, 120_000, KEPT_MS];

/**
 * The next of 1, 2, 4, 6, 8, 10, 20 … at or above a value: a scale that seldom changes.
 *
 * @param {number} value
 */
export function roundScale(value) {
  if (value <= 2) return 2;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 2, 4, 6, 8, 10].find((step) => step * power >= value) ?? 10;
  return step * power;
}

/**
 * The paths of a line and of the area under it. A gap breaks both.
 *
 * @param {RatePoint[]} points
 * @param {number} span in ms
 * @param {number} top rate at the upper edge
 */
export function drawPaths(points, span, top) {
  const end = points.at(-1)?.at ?? 0;
  /** @param {RatePoint} point */
  const x = (point) => (WIDTH * (1 - (end - point.at) / span)).toFixed(1);
  let line = "";
  let area = "";
  let run = "";
  for (const [i, point] of points.entries()) {
    if (point.rate === null) continue;
    const y = (HEIGHT * (1 - point.rate / top)).toFixed(1);
    run += `${run ? "L" : "M"}${x(point)} ${y}`;
    const next = points[i + 1];
    if (next && next.rate !== null) continue;
    line += run;
    area += `${run}V${HEIGHT}H${run.slice(1, run.indexOf(" "))}Z`;
    run = "";
  }
  return { line, area };
}

/** Keeps one chart in step with a history. */
export class Sparkline {
  #svg;
  #figure;

  /** @param {HTMLElement} figure with an SVG of `.area`, `.line` and `.now`, and its labels */
  constructor(figure) {
    const svg = figure.querySelector("svg");
    if (!svg) throw new Error("index.html has no chart to draw in");
    this.#svg = svg;
    this.#figure = figure;
  }

  /** @param {RatePoint[]} points oldest first */
  render(points) {
    const newest = points.at(-1)?.rate ?? null;
    const kept = (points.at(-1)?.at ?? 0) - (points[0]?.at ?? 0);
    const span = SPANS_MS.find((span) => span >= kept) ?? KEPT_MS;
    const peak = points.reduce((peak, point) => Math.max(peak, point.rate ?? 0), 0);
    const top = roundScale(peak);
    const { line, area } = drawPaths(points, span, top);
    this.#draw("line", line);
    this.#draw("area", area);
    this.#draw("now", newest === null ? "" : `M${WIDTH} ${(HEIGHT * (1 - newest / top)).toFixed(1)}h0`);
    this.#label("scale-top", line && formatCount(top));
    this.#label("scale-middle", line && formatCount(top / 2));
    this.#label("span", `${span / 60_000} min ago`);
    const words = newest === null ? "collecting" : `now ${formatRate(newest)}, highest ${formatRate(peak)}`;
    this.#svg.setAttribute("aria-label", `Decisions per second: ${words}`);
  }

  /**
   * @param {string} name
   * @param {string} d
   */
  #draw(name, d) {
    this.#svg.querySelector(`.${name}`)?.setAttribute("d", d);
  }

  /**
   * @param {string} name
   * @param {string} text
   */
  #label(name, text) {
    setText(part(this.#figure, `.${name}`), text);
  }
}
