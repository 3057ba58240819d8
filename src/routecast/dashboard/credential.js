/**
 * The token or API key of this page. It is only in memory: what a page stores, every script of its
 * site can read, also later.
 */

const LINK = "#key=";

/** @type {string | undefined} */
let held;

/** The token or API key, if there is one. */
export function credential() {
  return held;
}

/** @param {string} text */
export function holdCredential(text) {
  held = text.trim() || undefined;
}

/**
 * Take the key of a link `/#key=…`, which a screen on a wall may open, and remove it from the address
 * at once, so that nobody reads it there. A browser sends no server the part of an address after #.
 *
 * @returns {boolean} whether there was one
 */
export function takeKeyFromAddress() {
  const { hash, href } = location;
  if (!hash.startsWith(LINK)) return false;
  history.replaceState(history.state, "", href.slice(0, href.indexOf("#")));
  holdCredential(decoded(hash.slice(LINK.length)));
  return true;
}

/** @param {string} text */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
