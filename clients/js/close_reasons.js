/** Where a server is, why it lets nobody in, and what its close codes ask for. */

const STREAM = "/ws/metrics";
const ASK_WHY_MS = 5_000;

/** Whatever a server or a proxy asks for, a client looks again after so long. */
const LONGEST_ASKED_MS = 300_000;

const CLOSED_ABNORMALLY = 1006;
const RESTART = 1012;
const UNAUTHENTICATED = 4401;
const TOO_MANY_MESSAGES = 4429;
const AFTER_TOO_MANY_MS = 60_000;

/** The reason of a close that says when to come back, where there was no `goodbye` message. */
const RECONNECT_AFTER = /^reconnect_after_ms=(\d+)$/;

/** Close codes after which a new attempt would end the same way; with 4401, another token may help. */
const FINAL_CODES = new Set([1002, 1003, 1007, 1008, 1009, 4400, UNAUTHENTICATED, 4403]);

/** Routecast's own refusals have this media type; those with these statuses pass by themselves. */
const PROBLEM = "application/problem+json";
const MAX_PROBLEM_BYTES = 1_048_576;
const PASSING_STATUSES = new Set([408, 425, 426, 429]);

/** Web servers answer OPTIONS with these statuses where they have nothing but a WebSocket. */
const PLAIN_STATUSES = new Set([400, 404, 405, 426, 501]);

const REDIRECTS = new Set([301, 302, 307, 308]);
const SIGN_IN_STATUSES = new Set([401, 403, 407]);
const SIGN_IN = "you may have to sign in again";
const LONGEST_TEXT = 500;

export const UNREACHABLE = "the server cannot be reached";
const NO_UPGRADE = "the server answers, but no WebSocket gets through to it: a proxy in between must pass upgrades on";

/** @typedef {"retry" | "final" | "token"} Outcome `token` is final unless there is another token */

/**
 * What to do after a close code. With `outcomeOfAnswer`, this is the table that all clients have:
 * `tests/wire/answers.json`.
 *
 * @param {number} code
 * @returns {Outcome}
 */
export function outcomeOfClose(code) {
  if (code === UNAUTHENTICATED) return "token";
  return FINAL_CODES.has(code) ? "final" : "retry";
}

/**
 * What to do after an HTTP answer in place of an upgrade. Only Routecast's own problem document can
 * say that trying again is no help: every other answer comes from something in between, and may be
 * another one soon.
 *
 * @param {number} status
 * @param {boolean} ours whether it is Routecast's own problem document
 * @returns {Outcome}
 */
export function outcomeOfAnswer(status, ours) {
  if (!ours || status >= 500 || PASSING_STATUSES.has(status)) return "retry";
  return status === 401 ? "token" : "final";
}

/**
 * Why a client is out, and what to do about it.
 *
 * @typedef {Object} Verdict
 * @property {string} reason
 * @property {boolean} final whether a new attempt would end the same way
 * @property {boolean} token whether another token would help
 * @property {number} least ms to stay away
 * @property {boolean} exact whether that is the moment chosen for this very client
 * @property {number | null} code
 * @property {number | null} status
 */

/**
 * What an answer in place of an upgrade says more.
 *
 * @typedef {Object} Advice
 * @property {number} status
 * @property {boolean} plain whether it may be a server without routecast.v1
 * @property {string | null} moved where the same stream is by TLS
 */

/**
 * The stream's address: `ws` or `wss`, as the server's is `http` or `https`.
 *
 * @param {string | URL} server
 */
export function streamUrl(server) {
  const url = new URL(server, globalThis.location?.href);
  if (!/^(http|ws)s?:$/.test(url.protocol)) throw new TypeError(`${url.protocol} is not what the address of a server begins with`);
  url.protocol = url.protocol.replace("http", "ws");
  url.pathname = url.pathname.replace(/\/(ws\/metrics)?$/, "") + STREAM;
  url.search = url.hash = "";
  return url.href;
}

/**
 * A token as a subprotocol, which is all that a browser lets a page send along.
 *
 * @param {string} token
 */
export function bearer(token) {
  return `routecast.bearer.${btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/**
 * What a close code means for who wants to come back.
 *
 * @param {number} code
 * @param {string} reason
 * @param {number | null} goodbye ms after which the server told this client to come back
 * @returns {Verdict}
 */
export function closed(code, reason, goodbye) {
  const outcome = outcomeOfClose(code);
  const told = goodbye ?? Number(RECONNECT_AFTER.exec(reason)?.[1] ?? 0);
  const asked = outcome !== "retry" ? 0 : code === TOO_MANY_MESSAGES ? AFTER_TOO_MANY_MS : told;
  const least = Math.min(Math.max(asked, 0), LONGEST_ASKED_MS);
  return {
    reason: describe(code, reason),
    final: outcome !== "retry",
    token: outcome === "token",
    least,
    exact: least > 0 && code !== TOO_MANY_MESSAGES,
    code,
    status: null,
  };
}

/**
 * @param {number} code
 * @param {string} reason
 */
function describe(code, reason) {
  if (code === CLOSED_ABNORMALLY) return UNREACHABLE;
  if (code === RESTART) return "the server restarts";
  return `the server closed the connection (${reason.replace(RECONNECT_AFTER, "") || `close code ${code}`})`;
}

/**
 * Why a socket did not open. A browser does not say, so the server is asked, at the stream's own
 * address. Null where nobody answers.
 *
 * @param {string} stream
 * @returns {Promise<Verdict & Advice | null>}
 */
export async function askWhy(stream) {
  const url = stream.replace(/^ws/, "http");
  try {
    // With OPTIONS, unlike GET, a browser names the page's origin to its own server.
    const signal = AbortSignal.timeout(ASK_WHY_MS);
    const answer = await fetch(url, { method: "OPTIONS", redirect: "manual", signal });
    const problem = await readProblem(answer);
    const { status, headers } = answer;
    const outcome = outcomeOfAnswer(status, problem !== null);
    return {
      reason: problem ? `the server refused the connection (${problem.detail})` : explain(answer, url),
      final: outcome !== "retry",
      token: outcome === "token",
      least: retryAfter(headers.get("retry-after") ?? ""),
      exact: false,
      code: null,
      status,
      plain: !problem && PLAIN_STATUSES.has(status),
      moved: problem ? null : moved(answer, stream),
    };
  } catch {
    return null;
  }
}

/**
 * Routecast's own problem document; null where somebody else answers, or it was cut off.
 *
 * @param {Response} answer
 * @returns {Promise<{detail: string} | null>}
 */
async function readProblem(answer) {
  const type = (answer.headers.get("content-type") ?? "").split(";")[0]?.trim().toLowerCase();
  if (type !== PROBLEM || !answer.body) {
    await answer.body?.cancel();
    return null;
  }
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  let text = "";
  let bytes = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      text += decoder.decode(value, { stream: true });
      if ((bytes += value.length) > MAX_PROBLEM_BYTES) return null;
    }
    const { title, status, detail } = JSON.parse(text);
    if (typeof title !== "string" || status !== answer.status || typeof detail !== "string") return null;
    return { detail: detail.slice(0, LONGEST_TEXT) };
  } catch {
    return null;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * What an answer that is not Routecast's means, and what a person can do about it.
 *
 * @param {Response} answer
 * @param {string} url
 */
function explain(answer, url) {
  const { status, statusText, type } = answer;
  if (status === 204) return NO_UPGRADE;
  // A browser does not let a page see where a redirect leads.
  if (type === "opaqueredirect") return `the server sends this page elsewhere: ${SIGN_IN}`;
  const said = `the server answered ${`${status} ${statusText}`.trim()}`;
  const target = redirectTarget(answer, url);
  if (target) {
    const path = new URL(url).pathname;
    const same = target.pathname.endsWith(path);
    const place = `${target.origin}${same ? target.pathname.slice(0, -path.length) : target.pathname}`;
    return `the server answered ${status} to ${place.slice(0, LONGEST_TEXT)}: ${same ? "use that address" : SIGN_IN}`;
  }
  if (answer.ok || SIGN_IN_STATUSES.has(status)) return `${said}, not as Routecast does: ${SIGN_IN}`;
  return `${said}, not as Routecast does`;
}

/**
 * Where the same stream is by TLS: same host and path. No other redirect is followed.
 *
 * @param {Response} answer
 * @param {string} stream
 */
function moved(answer, stream) {
  const target = redirectTarget(answer, stream.replace(/^ws/, "http"));
  const asked = new URL(stream);
  if (!target || !REDIRECTS.has(answer.status) || !/^(https|wss):$/.test(target.protocol)) return null;
  if (target.hostname !== asked.hostname || target.pathname !== asked.pathname) return null;
  if (asked.protocol === "wss:" && asked.port === target.port) return null;
  asked.protocol = "wss:";
  asked.port = target.port;
  asked.search = "";
  return asked.href;
}

/**
 * @param {Response} answer
 * @param {string} url
 */
function redirectTarget({ status, headers }, url) {
  const location = headers.get("location");
  return location && status >= 300 && status < 400 && URL.canParse(location, url) ? new URL(location, url) : null;
}

/**
 * A `Retry-After` in ms; a date, as some proxies send, counts as nothing.
 *
 * @param {string} text
 */
export function retryAfter(text) {
  return /^\d{1,9}$/.test(text) ? Math.min(1_000 * Number(text), LONGEST_ASKED_MS) : 0;
}
