/** The three panels below the totals: strategies, confidence bands, providers. */

import { formatConfidence, formatCount, formatCounted, formatMoney, formatShare, moneyDigits } from "./format.js";
import { KeyedRows, byCount, part, setText } from "./rows.js";

/** @typedef {import("./page_view.js").Metrics} Metrics */
/** @typedef {import("./page_view.js").StrategyTotals} StrategyTotals */
/** @typedef {StrategyTotals & {name: string, share: number, digits: number}} StrategyRow */
/** @typedef {{name: string, count: number, share: number}} BarRow */

/** @param {string} id */
const byId = (id) => part(document, `#${id}`);

/** @param {string} id */
const template = (id) => /** @type {HTMLTemplateElement} */ (byId(id));

/**
 * @param {HTMLElement} row
 * @param {BarRow} item
 */
function fillBar(row, { count, share }) {
  setText(part(row, ".count"), formatCount(count));
  setText(part(row, ".share"), formatShare(share));
  part(row, ".fill").style.setProperty("--share", String(share || 0));
}

/**
 * @param {HTMLElement} row
 * @param {StrategyRow} item
 */
function fillStrategy(row, item) {
  fillBar(row, item);
  setText(part(row, ".avg-cost"), formatMoney(item.avg_cost, item.digits));
  setText(part(row, ".avg-confidence"), formatConfidence(item.avg_confidence));
}

/**
 * @param {string} id
 * @param {string} text hidden where empty
 */
function note(id, text) {
  const element = byId(id);
  setText(element, text);
  element.hidden = text === "";
}

/** @param {{count: number}[]} rest */
function describeRest(rest) {
  if (rest.length === 0) return "";
  const count = rest.reduce((sum, row) => sum + row.count, 0);
  return `and ${formatCount(rest.length)} more, with ${formatCounted(count, "decision")}`;
}

/** Keeps the panels in step with the document. */
export class Panels {
  #strategies = new KeyedRows(byId("strategies"), template("strategy-row"), fillStrategy);
  #bands = new KeyedRows(byId("bands"), template("bar-row"), fillBar);
  #providers = new KeyedRows(byId("providers"), template("bar-row"), fillBar);

  /** @param {Metrics} metrics */
  render(metrics) {
    this.#renderStrategies(metrics);
    this.#renderBands(metrics);
    this.#renderProviders(metrics);
  }

  /** @param {Metrics} metrics */
  #renderStrategies({ strategy_performance, total_decisions }) {
    const entries = Object.entries(strategy_performance);
    const digits = moneyDigits(entries.map(([, totals]) => totals.avg_cost));
    const rows = entries.map(([name, totals]) => ({ ...totals, name, share: totals.count / total_decisions, digits }));
    note("strategies-more", describeRest(this.#strategies.render(byCount(rows))));
  }

  /** @param {Metrics} metrics */
  #renderBands({ confidence_distribution, total_decisions }) {
    const { high, medium, low } = confidence_distribution;
    const known = high + medium + low;
    const bands = Object.entries({ high, medium, low });
    this.#bands.render(bands.map(([name, count]) => ({ name, count, share: known ? count / known : NaN })));
    const unknown = total_decisions - known;
    note("bands-more", unknown > 0 ? `${formatCount(unknown)} without a confidence, in no band` : "");
  }

  /** @param {Metrics} metrics */
  #renderProviders({ provider_usage, total_decisions }) {
    const rows = Object.entries(provider_usage).map(([name, count]) => ({ name, count, share: count / total_decisions }));
    note("providers-more", describeRest(this.#providers.render(byCount(rows))));
  }
}
