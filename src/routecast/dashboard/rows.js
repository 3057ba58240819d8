/** Lists whose rows stay the same elements while their numbers change, so nothing flickers. */

import { formatName } from "./format.js";

/** Rows shown before "and N more". */
const MOST_ROWS = 12;

/**
 * Set a text only where it differs: an untouched node costs the browser nothing.
 *
 * @param {Element} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * The first element within an element or template that matches a selector.
 *
 * @param {ParentNode} parent
 * @param {string} selector
 * @returns {HTMLElement}
 */
export function part(parent, selector) {
  const element = parent.querySelector(selector);
  if (!(element instanceof HTMLElement)) throw new Error(`the page has no ${selector}`);
  return element;
}

/**
 * Largest first, then by name. The server sorts too, but a JavaScript object moves names that look
 * like integers to its front.
 *
 * @template {{name: string, count: number}} T
 * @param {T[]} rows
 */
export function byCount(rows) {
  return rows.sort((a, b) => b.count - a.count || (a.name < b.name ? -1 : 1));
}

/**
 * Rows keyed by name.
 *
 * @template {{name: string}} T
 */
export class KeyedRows {
  #list;
  #template;
  #fill;
  /** @type {Map<string, HTMLElement>} */
  #rows = new Map();

  /**
   * @param {HTMLElement} list
   * @param {HTMLTemplateElement} template of one row, with a `.name` in it
   * @param {(row: HTMLElement, item: T) => void} fill
   */
  constructor(list, template, fill) {
    this.#list = list;
    this.#template = template;
    this.#fill = fill;
  }

  /**
   * Show the first items, in their order.
   *
   * @param {T[]} items
   * @returns {T[]} the items that are not shown
   */
  render(items) {
    const shown = items.slice(0, MOST_ROWS);
    const names = new Set(shown.map((item) => item.name));
    for (const [name, row] of this.#rows) {
      if (names.has(name)) continue;
      row.remove();
      this.#rows.delete(name);
    }
    for (const [i, item] of shown.entries()) {
      const row = this.#rows.get(item.name) ?? this.#create(item.name);
      const present = this.#list.children[i];
      if (present !== row) this.#list.insertBefore(row, present ?? null);
      this.#fill(row, item);
    }
    return items.slice(MOST_ROWS);
  }

  /** @param {string} name */
  #create(name) {
    const row = this.#template.content.firstElementChild?.cloneNode(true);
    if (!(row instanceof HTMLElement)) throw new Error(`the page has an empty #${this.#template.id}`);
    const label = part(row, ".name");
    label.textContent = label.title = formatName(name);
    this.#rows.set(name, row);
    return row;
  }
}
