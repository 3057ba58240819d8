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

/** Close codes, and HTTP answers below 500, after which a new attempt would not end the same way. */
const FINAL_CODES = new Set([1002, 1003, 1007, 1008, 1009, 4400, UNAUTHENTICATED, 4403]);
const PASSING_STATUSES = new Set([408, 425, 429]);

export const UNREACHABLE = "the server cannot be reached";
const NO_UPGRADE = "the server answers, but no WebSocket gets through to it: a proxy in between must pass upgrades on";

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
  const told = goodbye ?? Number(/^reconnect_after_ms=(\d+)$/.exec(reason)?.[1] ?? 0);
  const asked = code === RESTART ? told : code === TOO_MANY_MESSAGES ? AFTER_TOO_MANY_MS : 0;
  return {
    reason: describe(code, reason),
    final: FINAL_CODES.has(code),
    token: code === UNAUTHENTICATED,
    least: Math.min(asked, LONGEST_ASKED_MS),
    exact: code === RESTART && asked > 0,
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
  return `the server closed the connection (${reason || `close code ${code}`})`;
}

/**
 * Why a socket did not open. A browser does not say, so the server is asked, at the stream's own
 * address. Null where nobody answers.
 *
 * @param {string} stream
 * @returns {Promise<Verdict & {status: number} | null>}
 */
export async function askWhy(stream) {
  try {
    // With OPTIONS, unlike GET, a browser names the page's origin to its own server.
    const answer = await fetch(stream.replace(/^ws/, "http"), { method: "OPTIONS", signal: AbortSignal.timeout(ASK_WHY_MS) });
    const { ok, status, statusText, headers } = answer;
    const ours = headers.get("content-type") === "application/problem+json";
    const detail = ours ? (await answer.json()).detail : `${status} ${statusText}`.trim();
    return {
      reason: ok ? NO_UPGRADE : `the server refused the connection (${detail})`,
      final: ours && status < 500 && !PASSING_STATUSES.has(status),
      token: ours && status === 401,
      least: Math.min(1_000 * Number(headers.get("retry-after") ?? 0) || 0, LONGEST_ASKED_MS),
      exact: false,
      code: null,
      status,
    };
  } catch {
    return null;
  }
}
