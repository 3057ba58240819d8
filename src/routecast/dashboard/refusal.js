/** Why the stream was refused. A browser does not tell a page, so the server is asked over HTTP. */

/**
 * @typedef {Object} Refusal
 * @property {string} reason
 * @property {boolean} barred whether it is this page's own address that the server does not allow
 * @property {boolean} final whether a new attempt would end the same way
 */

const PATIENCE_MS = 5_000;

const NO_UPGRADE = "the server answers, but no WebSocket gets through to it: a proxy in between must pass upgrades on";

/**
 * Ask at the stream's own address what stood in its way; null where nobody answers.
 *
 * @param {string} stream the stream's address
 * @returns {Promise<Refusal | null>}
 */
export async function askWhy(stream) {
  try {
    // With OPTIONS, unlike GET, a browser names the page's origin to its own server.
    const answer = await fetch(stream.replace(/^ws/, "http"), { method: "OPTIONS", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.ok) return { reason: NO_UPGRADE, barred: false, final: false };
    const ours = answer.headers.get("content-type") === "application/problem+json";
    const detail = ours ? (await answer.json()).detail : `${answer.status} ${answer.statusText}`.trim();
    return {
      reason: `the server refused the connection (${detail})`,
      barred: ours && answer.status === 403,
      final: ours && answer.status < 500,
    };
  } catch {
    return null;
  }
}
