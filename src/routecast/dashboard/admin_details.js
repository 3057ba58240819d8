/** The details of one connection, and the buttons that disconnect it. */

import { ApiError } from "./admin_api.js";
import { formatBetween, formatProtocol, formatSaved, formatSubject, serverNow } from "./admin_columns.js";
import { UNKNOWN, formatBytes, formatCount, formatCounted, formatLatency, formatName } from "./format.js";
import { part, setText } from "./rows.js";

/** @typedef {import("./admin_api.js").OpenConnection} OpenConnection */
/** @typedef {import("./admin_api.js").ClosedConnection} ClosedConnection */
/** @typedef {import("./admin_api.js").FollowedView} FollowedView */

/** @param {string} id */
const byId = (id) => part(document, `#${id}`);

/** The dialog with one connection, which stays up to date. */
export class AdminDetails {
  #api;
  #onChange;
  #dialog = /** @type {HTMLDialogElement} */ (byId("details"));
  /** @type {OpenConnection | ClosedConnection | null} */
  #row = null;
  /** Whether the confirmation is about all connections of the subject. */
  #all = false;

  /**
   * @param {import("./admin_api.js").AdminApi} api
   * @param {() => void} onChange called when something was disconnected
   */
  constructor(api, onChange) {
    this.#api = api;
    this.#onChange = onChange;
    byId("close-details").addEventListener("click", () => this.close());
    this.#dialog.addEventListener("close", () => (this.#row = null));
    this.#dialog.addEventListener("click", (event) => {
      if (event.target === this.#dialog) this.close(); // beside it
    });
    byId("disconnect").addEventListener("click", () => this.#ask(false));
    byId("disconnect-all").addEventListener("click", () => this.#ask(true));
    byId("confirm-no").addEventListener("click", () => this.#showActions());
    byId("confirm").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#disconnect();
    });
  }

  /** @param {OpenConnection | ClosedConnection} row */
  open(row) {
    this.#row = row;
    this.#showProblem("");
    this.#showActions();
    this.#render(row);
    if (!this.#dialog.open) this.#dialog.showModal();
  }

  close() {
    this.#dialog.close();
  }

  /** Ask for the connection again, which may have been closed. Raises ApiError. */
  async refresh() {
    const row = this.#row;
    if (!row || "ended" in row) return;
    const wanted = { id: row.id, limit: "1" };
    /** @type {{connections: (OpenConnection | ClosedConnection)[]}} */
    let found = await this.#api.connections(wanted);
    if (found.connections.length === 0) found = await this.#api.connections({ ...wanted, closed: "true" });
    const [newest] = found.connections;
    if (newest && this.#row?.id === newest.id) {
      this.#row = newest;
      this.#render(newest);
    }
  }

  /** @param {OpenConnection | ClosedConnection} row */
  #render(row) {
    setText(byId("details-title"), formatSubject(row));
    const rows = describe(row);
    const list = byId("details-list");
    if (list.children.length !== rows.length) {
      list.replaceChildren(
        ...rows.map(() => {
          const pair = document.createElement("div");
          pair.append(document.createElement("dt"), document.createElement("dd"));
          return pair;
        }),
      );
    }
    for (const [index, [name, value]] of rows.entries()) {
      const pair = /** @type {HTMLElement} */ (list.children[index]);
      setText(part(pair, "dt"), name);
      setText(part(pair, "dd"), value);
    }
    const views = "subscriptions" in row ? row.subscriptions : [];
    byId("details-views").hidden = views.length === 0;
    const texts = views.map(describeView);
    const items = part(byId("details-views"), "ul");
    while (items.children.length > texts.length) items.lastElementChild?.remove();
    while (items.children.length < texts.length) items.append(document.createElement("li"));
    for (const [index, text] of texts.entries()) setText(/** @type {Element} */ (items.children[index]), text);
    byId("details-actions").hidden = "ended" in row;
    byId("disconnect-all").hidden = row.subject === "";
    setText(byId("disconnect-all"), `Disconnect all of ${formatName(row.subject)}…`);
  }

  #showActions() {
    byId("actions").hidden = false;
    byId("confirm").hidden = true;
  }

  /** @param {boolean} all */
  #ask(all) {
    const row = this.#row;
    if (!row) return;
    this.#all = all;
    this.#showProblem("");
    byId("actions").hidden = true;
    byId("confirm").hidden = false;
    /** @type {HTMLInputElement} */ (byId("may-return")).checked = false;
    const [whom, them] = all
      ? [`all connections of ${formatName(row.subject)}, on all nodes? Their clients do`, "them"]
      : [`this connection from ${row.address}? Its client does`, "it"];
    setText(byId("confirm-text"), `Disconnect ${whom} not come back without a person, unless you let ${them}.`);
    setText(byId("may-return-text"), `Let ${them} reconnect, after at most a minute`);
    byId("confirm-no").focus();
  }

  async #disconnect() {
    const row = this.#row;
    if (!row) return;
    const mayReturn = /** @type {HTMLInputElement} */ (byId("may-return")).checked;
    const button = /** @type {HTMLButtonElement} */ (byId("confirm-yes"));
    button.disabled = true;
    try {
      if (this.#all) {
        const { closed, missing } = await this.#api.disconnectAll(row.subject, mayReturn);
        this.#showProblem(missing ? `${formatCounted(closed, "connection")} disconnected, but ${missing}.` : "");
      } else {
        await this.#api.disconnect(row.id, mayReturn);
      }
      this.#showActions();
      this.#onChange();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#showProblem(`Not disconnected: ${error.message}.`);
    } finally {
      button.disabled = false;
    }
  }

  /** @param {string} text */
  #showProblem(text) {
    setText(byId("details-problem"), text);
    byId("details-problem").hidden = text === "";
  }
}

/**
 * @param {OpenConnection | ClosedConnection} row
 * @returns {[string, string][]}
 */
function describe(row) {
  /** @type {[string, string][]} */
  const who = [
    ["Address", row.address],
    ["Client", formatName(row.client) || UNKNOWN],
    ["Protocol", formatProtocol(row.protocol)],
    ["Node", row.node],
    ["Connection", row.id],
    ["Credential", row.credential ? formatName(row.credential) : "none"],
  ];
  /** @type {[string, string][]} */
  const sent = [
    ["Sent", `${formatBytes(row.bytes)} in ${formatCounted(row.messages, "message")}`],
    ["Saved", formatSaved(row)],
    ["Conflated", formatCounted(row.conflated, "message")],
  ];
  if ("ended" in row) {
    return [
      ["State", `closed with ${row.code}: ${row.reason}`],
      ["Ended", `${formatTime(row.ended)}, ${formatBetween(row.ended, serverNow())} ago`],
      ["Started", `${formatTime(row.started)}, lasted ${formatBetween(row.started, row.ended)}`],
      ...who,
      ...sent,
    ];
  }
  return [
    ["State", "open"],
    ["Started", `${formatTime(row.started)}, ${formatBetween(row.started, serverNow())} ago`],
    ["Expires", row.expires ? formatTime(row.expires) : "never"],
    ...who,
    ...sent,
    ["Waiting", formatBytes(row.unsent)],
    ["Lag", row.lag == null ? "not known" : formatCounted(row.lag, "position")],
    ["Round trip", row.round_trip_ms == null ? "not known" : `${formatLatency(row.round_trip_ms)}, ${Math.round(row.pong_age ?? 0)} s ago`],
    ["Histories", formatCount(row.histories)],
  ];
}

/** @param {FollowedView} view */
function describeView({ id, fields, filter, window, interval, lag }) {
  const filters = Object.entries(filter).map(([name, values]) => `${name} ${values.map(formatName).join(", ")}`);
  return [
    ...(id ? [formatName(id)] : []),
    fields.join(", "),
    ...(filters.length > 0 ? [`only ${filters.join("; ")}`] : []),
    window === "all" ? "all time" : window,
    `every ${interval} s`,
    ...(lag ? [`${formatCounted(lag, "position")} behind`] : []),
  ].join(" · ");
}

/** @param {string} at RFC 3339 */
function formatTime(at) {
  return new Date(at).toLocaleString("en", { dateStyle: "medium", timeStyle: "medium", hourCycle: "h23" });
}
