/** Wires the stream, the health poll and the view together. */

import { connect } from "./client/routecast.js";
import { HealthPoll } from "./health.js";
import { VIEW } from "./page_view.js";
import { RateHistory } from "./rates.js";
import { part } from "./rows.js";
import { tellsChanges } from "./status.js";
import { View, renderTitle } from "./renderer.js";
import { prepareCommands } from "./welcome.js";

/** @typedef {import("./page_view.js").Metrics} Metrics */

/** Twice a second, so that no countdown is seen to skip a number. */
const TICK_MS = 500;

/** A document may come a little late. */
const QUIET_MS = 1_500 * VIEW.interval;

/** A person looks on, who should soon be told that nothing is heard. */
const PATIENCE_MS = 5_000;

const address = new URL(".", location.href).href;
const client = connect(address, { patience: PATIENCE_MS });

/** @type {import("./status.js").PageState} */
const page = {
  stream: client.state,
  current: false,
  metrics: null,
  source: null,
  receivedAt: 0,
  failure: null,
  health: null,
};
const history = new RateHistory();
const view = new View();
let renderAsked = false;

/** However many documents come before the next animation frame, only the newest is drawn. */
function render() {
  renderTitle(page);
  if (renderAsked) return;
  renderAsked = true;
  requestAnimationFrame(() => {
    renderAsked = false;
    view.render(page, history.points, Date.now());
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
    if (error.code === "closed") return; // the state says so
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
 * The server's time, in ms since 1970: the newest document's, plus the time since it came.
 *
 * @param {number} silence in ms
 */
function serverTime(silence) {
  const at = Date.parse(page.metrics?.timestamp ?? "");
  return (Number.isNaN(at) ? page.receivedAt : at) + silence;
}

/** Where a server that is heard sends nothing new, the total stays what it is. */
function tick() {
  const silence = Date.now() - page.receivedAt;
  if (page.current && page.metrics && tellsChanges(page.stream) && silence > QUIET_MS) {
    history.assume(page.metrics.total_decisions, serverTime(silence));
  }
  render();
}

function showNotice() {
  const notice = document.querySelector('meta[name="routecast-notice"]')?.getAttribute("content") ?? "";
  const badge = part(document, "#notice");
  badge.textContent = notice;
  badge.hidden = notice === "";
}

showNotice();
prepareCommands(address);
part(document, "#retry").addEventListener("click", () => client.retry());
setInterval(tick, TICK_MS);
