/** Wires the stream, the health poll and the view together. */

import { HealthPoll } from "./health.js";
import { INTERVAL, readFrame, streamUrl } from "./protocol.js";
import { RateHistory } from "./rates.js";
import { askWhy } from "./refusal.js";
import { part } from "./rows.js";
import { Stream } from "./stream.js";
import { View, renderTitle } from "./view.js";
import { prepareCommands } from "./welcome.js";

/** @typedef {import("./protocol.js").Metrics} Metrics */

/** Twice a second, so that no countdown is seen to skip a number. */
const TICK_MS = 500;

const address = new URL(".", location.href).href;

/** @type {import("./status.js").PageState} */
const page = {
  stream: { phase: "connecting", again: false },
  metrics: null,
  receivedAt: 0,
  failure: null,
  health: null,
};
const history = new RateHistory();
const view = new View();
let renderAsked = false;

/** However many frames come before the next animation frame, only the newest is drawn. */
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

const streamAddress = streamUrl(address);
const stream = new Stream(streamAddress, {
  interval: INTERVAL,
  askWhy: () => askWhy(streamAddress),
  onText(text) {
    const frame = readFrame(text);
    const failed = page.failure !== null;
    if ("metrics" in frame) keep(frame.metrics);
    else page.failure = frame.failure;
    if (failed !== (page.failure !== null)) healthPoll.start();
    render();
  },
  onState(state) {
    page.stream = state;
    if (state.phase === "live") {
      healthPoll.start();
    } else {
      healthPoll.stop();
      page.health = null;
    }
    render();
  },
});

/** @param {Metrics} metrics */
function keep(metrics) {
  page.metrics = metrics;
  page.receivedAt = Date.now();
  page.failure = null;
  const at = Date.parse(metrics.timestamp);
  history.add(metrics.total_decisions, Number.isNaN(at) ? page.receivedAt : at);
}

function showNotice() {
  const notice = document.querySelector('meta[name="routecast-notice"]')?.getAttribute("content") ?? "";
  const badge = part(document, "#notice");
  badge.textContent = notice;
  badge.hidden = notice === "";
}

showNotice();
prepareCommands(address);
part(document, "#retry").addEventListener("click", () => stream.retry());
addEventListener("online", () => stream.nudge());
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") stream.nudge();
});
setInterval(render, TICK_MS);
stream.start();
