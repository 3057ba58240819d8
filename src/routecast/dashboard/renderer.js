/** Renders the state of the page into the elements of index.html. */

import { UNKNOWN, formatConfidence, formatCount, formatLatency, formatMoney, formatRate, formatShare } from "./format.js";
import { Panels } from "./panels.js";
import { part, setText } from "./rows.js";
import { Sparkline } from "./sparkline.js";
import { describe, describeAge, describeHealth, describeLimits, describeTitle, isForbidden, needsSignIn } from "./status.js";

/** @typedef {import("./page_view.js").Metrics} Metrics */
/** @typedef {import("./rates.js").RatePoint} RatePoint */
/** @typedef {import("./status.js").PageState} PageState */

/** @param {string} id */
const byId = (id) => part(document, `#${id}`);

/**
 * @param {string} id
 * @param {string} text
 */
const show = (id, text) => setText(byId(id), text);

/**
 * Show a number as large as its place allows.
 *
 * @param {string} id
 * @param {string} text
 */
function showFigure(id, text) {
  show(id, text);
  byId(id).style.setProperty("--characters", String(text.length));
}

/**
 * Update the tab's title, which is visible while the tab is hidden.
 *
 * @param {PageState} page
 */
export function renderTitle(page) {
  const title = describeTitle(page, describe(page, Date.now()));
  if (document.title !== title) document.title = title;
}

/** Renders the page; elements are touched only where they change. */
export class PageRenderer {
  #panels = new Panels();
  #sparkline = new Sparkline(part(document, ".movement"));
  /** @type {Metrics | null} */
  #shown = null;
  /** @type {RatePoint | undefined} */
  #newest;

  /**
   * @param {PageState} page
   * @param {RatePoint[]} points
   * @param {number} now in ms since 1970
   */
  render(page, points, now) {
    this.#renderStatus(page, now);
    this.#renderSections(page);
    const newest = points.at(-1);
    if (newest !== this.#newest) this.#sparkline.render(points);
    this.#newest = newest;
    if (!page.metrics || page.metrics === this.#shown) return;
    this.#shown = page.metrics;
    this.#renderTotals(page.metrics);
    this.#panels.render(page.metrics);
  }

  /**
   * @param {PageState} page
   * @param {number} now
   */
  #renderStatus(page, now) {
    const status = describe(page, now);
    byId("connection").dataset.tone = status.tone;
    show("state", status.word);
    show("countdown", status.countdown);
    show("updated", describeAge(page, status, now));
    byId("retry").hidden = !status.canRetry;
    const old = page.metrics !== null && status.tone !== "live";
    byId("numbers").classList.toggle("old", old);
    show("newest", old ? "last update" : "now");
    show("health", describeHealth(page.health));
    show("limits", describeLimits(page.health));
    byId("limits").hidden = byId("limits").textContent === "";
  }

  /** @param {PageState} page */
  #renderSections(page) {
    const { metrics } = page;
    const forbidden = isForbidden(page);
    const signIn = needsSignIn(page);
    const empty = metrics?.total_decisions === 0;
    byId("forbidden").hidden = !forbidden;
    byId("welcome").hidden = !empty || forbidden || signIn;
    byId("numbers").hidden = empty || signIn || (forbidden && metrics === null);
    this.#renderSignIn(page, signIn);
  }

  /**
   * @param {PageState} page
   * @param {boolean} needed
   */
  #renderSignIn({ stream, isSignedIn, problem: told }, needed) {
    const section = byId("sign-in");
    const appears = section.hidden && needed;
    section.hidden = !needed;
    const refused = isSignedIn && stream.name === "closed" ? `Not accepted: ${stream.reason}.` : "";
    const problem = needed ? told || refused : "";
    show("sign-in-problem", problem);
    byId("sign-in-problem").hidden = problem === "";
    if (appears) byId("credential").focus();
  }

  /** @param {Metrics} metrics */
  #renderTotals({ total_decisions, avg_confidence, rate, cost, errors, latency_ms }) {
    showFigure("total", formatCount(total_decisions));
    show("rate", formatRate(rate));
    showFigure("confidence", formatConfidence(avg_confidence));
    showFigure("cost", cost.priced > 0 ? formatMoney(cost.total) : UNKNOWN);
    show("cost-note", describeCost(cost));
    showFigure("errors", formatCount(errors.count));
    show("errors-note", errors.rate === undefined ? "" : `${formatShare(errors.rate)} of decisions`);
    showFigure("latency", formatLatency(latency_ms.p50));
    show("latency-note", `p95 ${formatLatency(latency_ms.p95)} · p99 ${formatLatency(latency_ms.p99)}`);
  }
}

/** @param {Metrics["cost"]} cost */
function describeCost({ priced, unpriced }) {
  if (unpriced === 0) return "every decision priced";
  if (priced === 0) return "no decision has a price";
  return `excludes ${formatCount(unpriced)} unpriced`;
}
