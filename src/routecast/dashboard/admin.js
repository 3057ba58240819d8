/** The operator's page: connects the API, the tables and the details. */

import { AdminApi, ApiError } from "./admin_api.js";
import { CLOSED_COLUMNS, NODE_COLUMNS, NodeRates, OPEN_COLUMNS, setNow } from "./admin_columns.js";
import { AdminDetails } from "./admin_details.js";
import { AdminPoll } from "./admin_poll.js";
import { AdminTable, markOrder } from "./admin_table.js";
import { formatAge, formatCount, formatCounted } from "./format.js";
import { part, setText } from "./rows.js";
import { Session, takeFailureFromAddress, takeKeyFromAddress } from "./session.js";
import { prepareSignIn, prepareSignOut, renderSession } from "./sign_in.js";

/** @typedef {import("./admin_api.js").Connection} Connection */
/** @typedef {import("./admin_api.js").OpenConnection} OpenConnection */
/** @typedef {import("./admin_api.js").ClosedConnection} ClosedConnection */

/** Connections on a page: few enough to read, and to ask for each second. */
const PAGE_SIZE = 50;

/** A search begins when nothing was typed for this time. */
const TYPING_MS = 250;

const UNAUTHENTICATED = 401;
const FORBIDDEN = 403;

const key = takeKeyFromAddress(); // before anything else, so that it is not shown for long
const address = new URL(".", location.href).href;
const session = new Session(address);
session.problem = takeFailureFromAddress();

/** @param {string} id */
const byId = (id) => part(document, `#${id}`);

/** @param {string} id */
const field = (id) => /** @type {HTMLInputElement | HTMLSelectElement} */ (byId(id));

const api = new AdminApi(address);
const rates = new NodeRates();

/** What is shown. `pages` are the parameters `after` of the pages up to the present one. */
const shown = { closed: false, order: "newest", pages: [""], next: /** @type {string | null} */ (null) };

const details = new AdminDetails(api, () => poll.now());
const nodes = new AdminTable(byId("nodes"), NODE_COLUMNS, (row) => row.node, (row) => chooseNode(row.node));
const open = new AdminTable(byId("open"), OPEN_COLUMNS, (row) => row.id, (row) => details.open(row), sort);
const closed = new AdminTable(byId("closed"), CLOSED_COLUMNS, (row) => row.id, (row) => details.open(row));

let answeredAt = 0;
let isSignedOut = false;
/** Why a person who is signed in may not see this page. */
let refusal = "";

/** The query of the present page. */
function query() {
  /** @type {Record<string, string>} */
  const given = { limit: String(PAGE_SIZE), closed: String(shown.closed), after: shown.pages.at(-1) ?? "" };
  if (!shown.closed) given.sort = shown.order;
  for (const name of ["search", "protocol", "node"]) given[name] = field(name).value.trim();
  return Object.fromEntries(Object.entries(given).filter(([, value]) => value !== ""));
}

/** @returns {Promise<boolean>} whether the server has answered */
async function refresh() {
  const asked = JSON.stringify(query());
  try {
    const [summaries, page] = await Promise.all([api.nodes(), api.connections(query())]);
    const own = summaries.nodes.find((node) => node.node === summaries.node);
    if (own) setNow(own.at);
    showNodes(summaries);
    // What was asked for may have changed meanwhile; then the answer is of another page.
    if (asked === JSON.stringify(query())) showPage(page);
    showMissing(page.missing ?? summaries.missing);
    await details.refresh();
    answeredAt = Date.now();
    isSignedOut = false;
    byId("sign-in").hidden = true;
    byId("numbers").hidden = false;
    showState("live", "Live");
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    await fail(error);
    return false;
  }
}

/** @param {ApiError} error */
async function fail(error) {
  const refused = error.status === UNAUTHENTICATED || error.status === FORBIDDEN;
  if (!refused) {
    showState("stale", answeredAt ? "Stale" : "Not reachable", error.message);
    return;
  }
  poll.stop();
  details.close();
  await session.load(); // a session that has ended is forgotten
  refusal = error.status === FORBIDDEN ? `Not accepted: ${error.message}.` : "";
  const appears = byId("sign-in").hidden;
  isSignedOut = true;
  byId("numbers").hidden = true;
  byId("sign-in").hidden = false;
  if (appears) byId("credential").focus();
  showState("stale", "Sign in");
  showSession();
}

function showSession() {
  renderSession(session);
  const problem = session.problem || refusal;
  setText(byId("sign-in-problem"), problem);
  byId("sign-in-problem").hidden = problem === "";
}

/** @param {string | undefined} given */
async function signInByLink(given) {
  if (given !== undefined && (await session.signIn(given))) signedIn();
}

function signedIn() {
  refusal = "";
  poll.now();
}

/**
 * @param {string} tone
 * @param {string} word
 * @param {string} [reason]
 */
function showState(tone, word, reason = "") {
  byId("connection").dataset.tone = tone;
  setText(byId("state"), word);
  const age = answeredAt && tone !== "live" && !isSignedOut ? `Received ${formatAge(Date.now() - answeredAt)} ago` : "";
  setText(byId("updated"), [age, reason].filter(Boolean).join("; "));
  byId("retry").hidden = tone === "live" || isSignedOut;
  byId("numbers").classList.toggle("old", tone === "stale");
}

/** @param {import("./admin_api.js").NodeSummaries} summaries */
function showNodes(summaries) {
  const rows = rates.rows(summaries.nodes);
  nodes.render(rows);
  const streams = rows.reduce((sum, row) => sum + row.connections, 0);
  setText(byId("health"), `${formatCounted(rows.length, "node")} · ${formatCounted(streams, "open stream")}`);
  const select = /** @type {HTMLSelectElement} */ (field("node"));
  const names = new Set(rows.map((row) => row.node));
  const known = [...select.options].slice(1);
  for (const option of known) if (!names.has(option.value) && option.value !== select.value) option.remove();
  for (const { node, host } of rows) {
    if (!known.some((option) => option.value === node)) select.append(new Option(`${node} · ${host}`, node));
  }
}

/** @param {import("./admin_api.js").ConnectionPage<Connection>} page */
function showPage(page) {
  if (page.connections.length === 0 && shown.pages.length > 1 && !page.next) {
    turn(-1); // those of this page have gone
    return;
  }
  if (shown.closed) closed.render(/** @type {ClosedConnection[]} */ (page.connections));
  else open.render(/** @type {OpenConnection[]} */ (page.connections));
  shown.next = page.next;
  setText(byId("count"), formatCounted(page.total, shown.closed ? "closed connection" : "open connection"));
  const filtered = ["search", "protocol", "node"].some((name) => field(name).value !== "");
  const empty = filtered ? "No connection matches." : shown.closed ? "No connection has been closed yet." : "Nobody is connected.";
  setText(byId("nothing"), empty);
  byId("nothing").hidden = page.connections.length > 0;
  const many = shown.pages.length > 1 || page.next !== null;
  byId("pager").hidden = !many;
  setText(byId("page"), `Page ${formatCount(shown.pages.length)} of ${formatCount(Math.max(Math.ceil(page.total / PAGE_SIZE), shown.pages.length))}`);
  /** @type {HTMLButtonElement} */ (byId("previous")).disabled = shown.pages.length === 1;
  /** @type {HTMLButtonElement} */ (byId("next")).disabled = page.next === null;
}

/** @param {string | null} missing */
function showMissing(missing) {
  setText(byId("missing"), missing ? `Not all nodes are shown: ${missing}.` : "");
  byId("missing").hidden = !missing;
}

/** @param {1 | -1} step */
function turn(step) {
  if (step < 0) shown.pages.pop();
  else if (shown.next) shown.pages.push(shown.next);
  poll.now();
}

/** Show the first page of another choice. */
function choose() {
  shown.pages = [""];
  poll.now();
}

/** @param {string[]} orders */
function sort(orders) {
  shown.order = orders[(orders.indexOf(shown.order) + 1) % orders.length] ?? "newest";
  markOrder(byId("open"), shown.order);
  choose();
}

/** @param {string} name */
function chooseNode(name) {
  field("node").value = field("node").value === name ? "" : name;
  choose();
}

/** @param {boolean} isClosed */
function show(isClosed) {
  shown.closed = isClosed;
  byId("show-open").setAttribute("aria-pressed", String(!isClosed));
  byId("show-closed").setAttribute("aria-pressed", String(isClosed));
  byId("open-connections").hidden = isClosed;
  byId("closed-connections").hidden = !isClosed;
  choose();
}

function showNotice() {
  const notice = document.querySelector('meta[name="routecast-notice"]')?.getAttribute("content") ?? "";
  setText(byId("notice"), notice);
  byId("notice").hidden = notice === "";
}

const poll = new AdminPoll(refresh);
/** @type {ReturnType<typeof setTimeout> | undefined} */
let typing;
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(choose, TYPING_MS);
});
for (const name of ["protocol", "node"]) byId(name).addEventListener("change", choose);
byId("show-open").addEventListener("click", () => show(false));
byId("show-closed").addEventListener("click", () => show(true));
byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
byId("retry").addEventListener("click", () => poll.now());
// A key may be added to the address of a page that is open.
addEventListener("hashchange", () => void signInByLink(takeKeyFromAddress()));
session.onChange = showSession;
prepareSignIn(session, signedIn);
prepareSignOut(session, () => poll.now());
showNotice();
markOrder(byId("open"), shown.order);
if (key === undefined) void session.load();
else await session.signIn(key);
poll.now();
