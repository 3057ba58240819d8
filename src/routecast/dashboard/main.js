/** Connects the stream and the health poll with the renderer. */

import { connect } from "./client/routecast.js";
import { credential, takeKeyFromAddress } from "./credential.js";
import { HealthPoll } from "./health.js";
import { VIEW } from "./page_view.js";
import { RateHistory } from "./rates.js";
import { part } from "./rows.js";
import { prepareSignIn } from "./sign_in.js";
import { sendsChangesOnly } from "./status.js";
import { PageRenderer, renderTitle } from "./renderer.js";
import { addKeyToCommand, prepareCommands } from "./welcome.js";

/** @typedef {import("./page_view.js").Metrics} Metrics */

/** Twice a second, so that a countdown skips no number. */
const TICK_MS = 500;

/** After this silence nothing has changed; a document may come a little late. */
const QUIET_MS = 1_500 * VIEW.interval;

/** Shorter than the default, because the user should soon see that no message arrives. */
const PATIENCE_MS = 5_000;

takeKeyFromAddress(); // before anything else, so that it is not shown for long
const address = new URL(".", location.href).href;
const client = connect(address, { patience: PATIENCE_MS, token: credential });

/** @type {import("./status.js").PageState} */
const page = {
  stream: client.state,
  current: false,
  metrics: null,
  source: null,
  receivedAt: 0,
  failure: null,
  health: null,
  hasCredential: false,
};
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

const healthPoll = new HealthPoll(new URL("health", address).href, credential, (health) => {
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
  render();
});

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

/** Connect with the token or API key that the page now has. */
function signIn() {
  showCredential();
  client.retry();
}

function showCredential() {
  page.hasCredential = credential() !== undefined;
  if (page.hasCredential) addKeyToCommand(address);
}

function showNotice() {
  const notice = document.querySelector('meta[name="routecast-notice"]')?.getAttribute("content") ?? "";
  const badge = part(document, "#notice");
  badge.textContent = notice;
  badge.hidden = notice === "";
}

showNotice();
prepareCommands(address);
prepareSignIn(signIn);
showCredential();
// A key may be added to the address of a page that is open.
addEventListener("hashchange", () => takeKeyFromAddress() && signIn());
part(document, "#retry").addEventListener("click", () => client.retry());
setInterval(tick, TICK_MS);
