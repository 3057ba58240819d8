/** Connects the stream and the health poll with the renderer. */

import { connect } from "./client/routecast.js";
import { HealthPoll } from "./health.js";
import { VIEW } from "./page_view.js";
import { RateHistory } from "./rates.js";
import { part } from "./rows.js";
import { Session, takeFailureFromAddress, takeKeyFromAddress } from "./session.js";
import { prepareSignIn, prepareSignOut, renderSession } from "./sign_in.js";
import { isUnauthenticated, sendsChangesOnly } from "./status.js";
import { PageRenderer, renderTitle } from "./renderer.js";
import { addKeyToCommand, prepareCommands } from "./welcome.js";

/** @typedef {import("./page_view.js").Metrics} Metrics */

/** Twice a second, so that a countdown skips no number. */
const TICK_MS = 500;

/** After this silence nothing has changed; a document may come a little late. */
const QUIET_MS = 1_500 * VIEW.interval;

/** Shorter than the default, because the user should soon see that no message arrives. */
const PATIENCE_MS = 5_000;

/** A stream that ends although somebody is signed in is opened again after this time, at the soonest. */
const REOPEN_MS = 10_000;

const key = takeKeyFromAddress(); // before anything else, so that it is not shown for long
const address = new URL(".", location.href).href;
const session = new Session(address);
session.problem = takeFailureFromAddress();
if (key !== undefined) await session.signIn(key);
const client = connect(address, { patience: PATIENCE_MS });
let reopenedAt = -Infinity;

/** @type {import("./status.js").PageState} */
const page = {
  stream: client.state,
  current: false,
  metrics: null,
  source: null,
  receivedAt: 0,
  failure: null,
  health: null,
  isSignedIn: session.person !== null,
  problem: session.problem,
};
session.onChange = showSession;
const history = new RateHistory();
const renderer = new PageRenderer();
let isRenderScheduled = false;

/** Of the documents that come before the next animation frame, only the newest is drawn. */
function render() {
  renderTitle(page);
  if (isRenderScheduled) return;
  isRenderScheduled = true;
  requestAnimationFrame(() => {
    isRenderScheduled = false;
    renderer.render(page, history.points, Date.now());
  });
}

const healthPoll = new HealthPoll(new URL("health", address).href, (health) => {
  page.health = health;
  render();
});

client.subscribe(
  VIEW,
  (metrics, { source }) => {
    if (page.failure !== null) healthPoll.start();
    page.current = true;
    page.metrics = /** @type {Metrics} */ (metrics);
    page.source = source;
    page.receivedAt = Date.now();
    page.failure = null;
    history.add(page.metrics.total_decisions, serverTime(0));
    render();
  },
  (error) => {
    if (error.code === "closed") return; // the state shows it
    if (page.failure === null) healthPoll.start();
    page.failure = error.message;
    render();
  },
);

client.onState((state) => {
  page.stream = state;
  if (state.name === "connected") {
    healthPoll.start();
  } else {
    healthPoll.stop();
    page.health = null;
    history.interrupt();
  }
  if (state.name !== "connected" && state.name !== "stale") page.current = false;
  if (isUnauthenticated(state)) void reopen();
  render();
});

/** The stream was refused or ended: show the form, or open it again if the session is another one. */
async function reopen() {
  await session.load();
  if (session.person === null || performance.now() - reopenedAt < REOPEN_MS) return;
  reopenedAt = performance.now();
  client.retry();
}

/**
 * The server's time, in ms since 1970: the newest document's timestamp, plus the time since it came.
 *
 * @param {number} silence in ms
 */
function serverTime(silence) {
  const at = Date.parse(page.metrics?.timestamp ?? "");
  return (Number.isNaN(at) ? page.receivedAt : at) + silence;
}

/** While a connected server sends no change, the total is unchanged. */
function tick() {
  const silence = Date.now() - page.receivedAt;
  if (page.current && page.metrics && sendsChangesOnly(page.stream) && silence > QUIET_MS) {
    history.assume(page.metrics.total_decisions, serverTime(silence));
  }
  render();
}

function showSession() {
  if (session.required) addKeyToCommand(address);
  renderSession(session);
  part(document, "#operators").hidden = session.required && !session.person?.scopes.includes("admin");
  page.isSignedIn = session.person !== null;
  page.problem = session.problem;
  render();
}

/** @param {string | undefined} key */
async function signInByLink(key) {
  if (key !== undefined && (await session.signIn(key))) client.retry();
}

function showNotice() {
  const notice = document.querySelector('meta[name="routecast-notice"]')?.getAttribute("content") ?? "";
  const badge = part(document, "#notice");
  badge.textContent = notice;
  badge.hidden = notice === "";
}

showNotice();
prepareCommands(address);
prepareSignIn(session, () => client.retry());
prepareSignOut(session, () => client.retry());
if (key === undefined) void session.load();
else showSession();
// A key may be added to the address of a page that is open.
addEventListener("hashchange", () => void signInByLink(takeKeyFromAddress()));
part(document, "#retry").addEventListener("click", () => client.retry());
setInterval(tick, TICK_MS);
