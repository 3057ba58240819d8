/** Server URLs, refusal reasons and close codes. */

const STREAM = "/ws/metrics";
const TICKETS = "/v1/tickets";
const TICKET_TIMEOUT_MS = 10_000;
const DIAGNOSE_TIMEOUT_MS = 5_000;

/** The longest delay that a server or a proxy can ask for. */
const MAX_SERVER_DELAY_MS = 300_000;

const CLOSED_ABNORMALLY = 1006;
const RESTART = 1012;
const UNAUTHENTICATED = 4401;
const TOO_MANY_MESSAGES = 4429;
const TOO_MANY_MESSAGES_DELAY_MS = 60_000;

/** The reason in a close frame that says when to reconnect, if there was no `goodbye` message. */
const RECONNECT_AFTER = /^reconnect_after_ms=(\d+)$/;

/** Close codes after which a new attempt would end in the same way; after 4401 another token may help. */
const FINAL_CODES = new Set([1002, 1003, 1007, 1008, 1009, 4400, UNAUTHENTICATED, 4403]);

/** The media type of Routecast's own refusals. */
const PROBLEM = "application/problem+json";
const MAX_PROBLEM_BYTES = 1_048_576;

/** Refusals with these statuses are temporary. */
const TEMPORARY_STATUSES = new Set([408, 425, 426, 429]);

/** Web servers that have only a WebSocket at an address answer OPTIONS with these statuses. */
const WEBSOCKET_ONLY_STATUSES = new Set([400, 404, 405, 426, 501]);

const REDIRECTS = new Set([301, 302, 307, 308]);
const SIGN_IN_STATUSES = new Set([401, 403, 407]);
const SIGN_IN = "you may have to sign in again";
const MAX_TEXT = 500;

/** The characters that a token in an HTTP header may have. */
const TOKEN = /^[!-~]+$/;
export const BAD_TOKEN = "the token must be a text of visible ASCII characters";
const NEEDS_TOKEN = "a valid token or API key is needed";
const NEEDS_SCOPE = "a token or an API key that has it is needed";

export const UNREACHABLE = "the server cannot be reached";
const NO_UPGRADE = "the server answers, but no WebSocket gets through to it: a proxy in between must pass upgrades on";

/** @typedef {"retry" | "final" | "token"} Outcome `token` is final unless there is another token */

/**
 * The outcome of a close code. All clients follow the same table, `tests/wire/answers.json`.
 *
 * @param {number} code
 * @returns {Outcome}
 */
export function outcomeOfClose(code) {
  if (code === UNAUTHENTICATED) return "token";
  return FINAL_CODES.has(code) ? "final" : "retry";
}

/**
 * The outcome of an HTTP answer in place of an upgrade. Only Routecast's own problem document can be
 * final: any other answer comes from a proxy in between, which may soon answer differently.
 *
 * @param {number} status
 * @param {boolean} ours whether it is Routecast's own problem document
 * @returns {Outcome}
 */
export function outcomeOfAnswer(status, ours) {
  if (!ours || status >= 500 || TEMPORARY_STATUSES.has(status)) return "retry";
  return status === 401 ? "token" : "final";
}

/**
 * Why a connection failed, and what to do next.
 *
 * @typedef {Object} Verdict
 * @property {string} reason
 * @property {boolean} final whether a new attempt would end in the same way
 * @property {boolean} token whether another token may help
 * @property {number} minDelay ms to wait at least before the next attempt
 * @property {boolean} exact whether the server chose that delay for this client, so that no jitter is added
 * @property {number | null} code close code
 * @property {number | null} status HTTP status
 */

/**
 * What only an HTTP answer in place of an upgrade says.
 *
 * @typedef {Object} RefusalDetails
 * @property {number} status
 * @property {boolean} mayLackV1 whether the server may not know routecast.v1
 * @property {string | null} redirect the URL of the same stream by TLS
 */

/**
 * The stream's address: `ws` or `wss`, as the server's is `http` or `https`.
 *
 * @param {string | URL} server
 */
export function streamUrl(server) {
  const url = new URL(server, globalThis.location?.href);
  if (!/^(http|ws)s?:$/.test(url.protocol)) throw new TypeError(`a server's address begins with http: or ws:, not ${url.protocol}`);
  url.protocol = url.protocol.replace("http", "ws");
  url.pathname = url.pathname.replace(/\/(ws\/metrics)?$/, "") + STREAM;
  url.search = url.hash = "";
  return url.href;
}

/**
 * Whether a text can be a token or an API key.
 *
 * @param {string} text
 */
export function isToken(text) {
  return TOKEN.test(text);
}

/**
 * A token as a subprotocol: a browser lets a page send nothing else with a WebSocket.
 *
 * @param {string} token
 */
export function bearer(token) {
  return `routecast.bearer.${btoa(token).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

/**
 * What to do after a close code.
 *
 * @param {number} code
 * @param {string} reason
 * @param {number | null} goodbye the delay that a `goodbye` message named, in ms
 * @returns {Verdict}
 */
export function closeVerdict(code, reason, goodbye) {
  const outcome = outcomeOfClose(code);
  const named = goodbye ?? Number(RECONNECT_AFTER.exec(reason)?.[1] ?? 0);
  const wanted = outcome !== "retry" ? 0 : code === TOO_MANY_MESSAGES ? TOO_MANY_MESSAGES_DELAY_MS : named;
  const minDelay = Math.min(Math.max(wanted, 0), MAX_SERVER_DELAY_MS);
  return {
    reason: withAdvice(describe(code, reason), outcome),
    final: outcome !== "retry",
    token: outcome === "token",
    minDelay,
    exact: minDelay > 0 && code !== TOO_MANY_MESSAGES,
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
 * @param {string} reason
 * @param {Outcome} outcome
 */
function withAdvice(reason, outcome) {
  return outcome === "token" ? `${reason}; ${NEEDS_TOKEN}` : reason;
}

/**
 * Find out why a WebSocket did not open. A browser does not say it, so this sends an HTTP request to
 * the same address. Null if there is no answer.
 *
 * @param {string} stream URL of the WebSocket
 * @param {string} [token]
 * @returns {Promise<Verdict & RefusalDetails | null>}
 */
export async function diagnose(stream, token) {
  const url = stream.replace(/^ws/, "http");
  try {
    // With OPTIONS, unlike GET, a browser sends the page's origin also to the page's own server.
    const signal = AbortSignal.timeout(DIAGNOSE_TIMEOUT_MS);
    const answer = await fetch(url, { method: "OPTIONS", redirect: "manual", signal, headers: authorization(token) });
    return await answerVerdict(answer, stream);
  } catch (error) {
    // A server without authentication does not let pages of other sites send a token.
    const mayBeToken = token && error instanceof TypeError; // and not because of the timeout
    return mayBeToken ? diagnose(stream) : null;
  }
}

/**
 * @param {string} [token]
 * @returns {Record<string, string>}
 */
function authorization(token) {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/**
 * What an answer says that is not the one that was wanted.
 *
 * @param {Response} answer
 * @param {string} asked a URL, of a WebSocket as such
 * @returns {Promise<Verdict & RefusalDetails>}
 */
async function answerVerdict(answer, asked) {
  const problem = await readProblem(answer);
  const { status, headers } = answer;
  const outcome = outcomeOfAnswer(status, problem !== null);
  return {
    reason: problem ? refusal(answer, problem.detail, outcome) : explain(answer, asked.replace(/^ws/, "http")),
    final: outcome !== "retry",
    token: outcome === "token",
    minDelay: retryAfter(headers.get("retry-after") ?? ""),
    exact: false,
    code: null,
    status,
    mayLackV1: !problem && WEBSOCKET_ONLY_STATUSES.has(status),
    redirect: problem ? null : tlsRedirect(answer, asked),
  };
}

/**
 * Ask for a ticket, which opens one stream in place of the token. Without one, `verdict` says why;
 * it is null if there is no answer.
 *
 * @param {string} stream URL of the WebSocket
 * @param {string} [token]
 * @returns {Promise<{ticket: string} | {ticket: null, verdict: Verdict & RefusalDetails | null}>}
 */
export async function askForTicket(stream, token) {
  const asked = stream.slice(0, -STREAM.length) + TICKETS;
  try {
    const signal = AbortSignal.timeout(TICKET_TIMEOUT_MS);
    const options = { method: "POST", redirect: /** @type {const} */ ("manual"), signal, headers: authorization(token) };
    const answer = await fetch(asked.replace(/^ws/, "http"), options);
    if (answer.ok && answer.headers.get("content-type")?.startsWith("application/json")) {
      const { ticket } = await answer.json();
      if (typeof ticket === "string") return { ticket };
    }
    const verdict = await answerVerdict(answer, asked);
    const redirect = verdict.redirect && verdict.redirect.slice(0, -TICKETS.length) + STREAM;
    return { ticket: null, verdict: { ...verdict, redirect, mayLackV1: false } };
  } catch {
    return { ticket: null, verdict: null };
  }
}

/**
 * Why Routecast itself refused the connection, and what helps.
 *
 * @param {Response} answer
 * @param {string} detail
 * @param {Outcome} outcome
 */
function refusal({ headers }, detail, outcome) {
  const reason = `the server refused the connection (${detail})`;
  // RFC 6750, 3.1
  if (headers.get("www-authenticate")?.includes('error="insufficient_scope"')) return `${reason}; ${NEEDS_SCOPE}`;
  return withAdvice(reason, outcome);
}

/**
 * Routecast's own problem document; null if a proxy answers, or the document is cut off.
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
    return { detail: detail.slice(0, MAX_TEXT) };
  } catch {
    return null;
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * What an answer that is not Routecast's means, and what the user can do.
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
    const isSamePath = target.pathname.endsWith(path);
    const address = `${target.origin}${isSamePath ? target.pathname.slice(0, -path.length) : target.pathname}`;
    return `the server answered ${status} to ${address.slice(0, MAX_TEXT)}: ${isSamePath ? "use that address" : SIGN_IN}`;
  }
  if (answer.ok || SIGN_IN_STATUSES.has(status)) return `${said}, not as Routecast does: ${SIGN_IN}`;
  return `${said}, not as Routecast does`;
}

/**
 * The URL of the same stream by TLS, on the same host and path. No other redirect is followed.
 *
 * @param {Response} answer
 * @param {string} stream
 */
function tlsRedirect(answer, stream) {
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
 * A `Retry-After` in ms; 0 for a date, which some proxies send.
 *
 * @param {string} text
 */
export function retryAfter(text) {
  return /^\d{1,9}$/.test(text) ? Math.min(1_000 * Number(text), MAX_SERVER_DELAY_MS) : 0;
}
