/** Tables whose rows and cells stay the same elements while their texts change. */

import { setText } from "./rows.js";

/**
 * @template T
 * @typedef {Object} Column
 * @property {string} name the class of its cells
 * @property {string} heading
 * @property {(row: T) => string} text
 * @property {(row: T) => string} [title] what a cell shows when it is pointed at
 * @property {(row: T) => string} [tone] the look of a cell: "", "bad", "quiet"
 * @property {string[]} [sorts] the orders that a click on the heading changes to, in turn
 * @property {"number"} [kind]
 */

/**
 * Rows keyed by id.
 *
 * @template T
 */
export class AdminTable {
  #body;
  #columns;
  #keyOf;
  #onOpen;
  /** @type {Map<string, HTMLTableRowElement>} */
  #rows = new Map();
  /** @type {Map<string, T>} */
  #items = new Map();

  /**
   * @param {HTMLElement} table with an empty head and body
   * @param {Column<T>[]} columns
   * @param {(row: T) => string} keyOf
   * @param {(row: T) => void} onOpen called when a person chooses a row
   * @param {(order: string[]) => void} [onSort] called with the orders of a heading
   */
  constructor(table, columns, keyOf, onOpen, onSort) {
    this.#columns = columns;
    this.#keyOf = keyOf;
    this.#onOpen = onOpen;
    const head = document.createElement("thead");
    head.append(document.createElement("tr"));
    for (const column of columns) head.firstElementChild?.append(heading(column, onSort));
    this.#body = document.createElement("tbody");
    table.replaceChildren(head, this.#body);
    this.#body.addEventListener("click", (event) => this.#choose(event.target));
  }

  /** @param {T[]} items in their order */
  render(items) {
    this.#items = new Map(items.map((item) => [this.#keyOf(item), item]));
    for (const [key, row] of this.#rows) {
      if (this.#items.has(key)) continue;
      row.remove();
      this.#rows.delete(key);
    }
    let index = 0;
    for (const [key, item] of this.#items) {
      const row = this.#rows.get(key) ?? this.#create(key);
      const present = this.#body.children[index];
      if (present !== row) this.#body.insertBefore(row, present ?? null);
      this.#fill(row, item);
      index += 1;
    }
  }

  /** @param {string} key */
  #create(key) {
    const row = document.createElement("tr");
    row.dataset.key = key;
    for (const [index, { name, heading: label, kind }] of this.#columns.entries()) {
      const cell = document.createElement(index === 0 ? "th" : "td");
      cell.className = kind ? `${name} ${kind}` : name;
      cell.dataset.label = label;
      if (index === 0) {
        cell.setAttribute("scope", "row");
        const button = document.createElement("button");
        button.type = "button";
        button.className = "open";
        cell.append(button);
      }
      row.append(cell);
    }
    this.#rows.set(key, row);
    return row;
  }

  /**
   * @param {HTMLTableRowElement} row
   * @param {T} item
   */
  #fill(row, item) {
    for (const [index, column] of this.#columns.entries()) {
      const cell = /** @type {HTMLElement} */ (row.children[index]);
      setText(index === 0 ? /** @type {Element} */ (cell.firstElementChild) : cell, column.text(item));
      const title = column.title?.(item) ?? "";
      if (cell.title !== title) cell.title = title;
      const tone = column.tone?.(item) ?? "";
      if ((cell.dataset.tone ?? "") !== tone) cell.dataset.tone = tone;
    }
  }

  /** @param {EventTarget | null} target */
  #choose(target) {
    const row = target instanceof Element ? target.closest("tr") : null;
    // A person who selects a text to copy it does not choose the row.
    if (!row || getSelection()?.toString()) return;
    const item = this.#items.get(row.dataset.key ?? "");
    if (item) this.#onOpen(item);
  }
}

/**
 * @template T
 * @param {Column<T>} column
 * @param {((order: string[]) => void) | undefined} onSort
 */
function heading({ name, heading: label, kind, sorts }, onSort) {
  const cell = document.createElement("th");
  cell.scope = "col";
  cell.className = kind ? `${name} ${kind}` : name;
  if (!sorts || !onSort) {
    cell.textContent = label;
    return cell;
  }
  cell.dataset.sorts = sorts.join(" ");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "sort";
  button.textContent = label;
  button.addEventListener("click", () => onSort(sorts));
  cell.append(button);
  return cell;
}

/**
 * Mark the heading of the present order.
 *
 * @param {HTMLElement} table
 * @param {string} order
 */
export function markOrder(table, order) {
  for (const cell of table.querySelectorAll("th[data-sorts]")) {
    const is = /** @type {HTMLElement} */ (cell).dataset.sorts?.split(" ").includes(order);
    const direction = order === "newest" ? "ascending" : "descending"; // the newest has the least age
    if (is) cell.setAttribute("aria-sort", direction);
    else cell.removeAttribute("aria-sort");
  }
}
