/**
 * The person who is signed in. The server gives the browser a cookie that no script can read, so the page holds
 * no token and no API key.
 */

const KEY_LINK = "#key=";
const FAILURE_LINK = "#sign-in=";
const PATIENCE_MS = 10_000;

/** A session of an API key lasts for hours, and a screen on a wall for months. */
const RENEWAL_MS = 3_600_000;

/** Why signing in by an identity provider failed, as the address says it. */
const FAILURES = /** @type {Record<string, string>} */ ({
  unavailable: "The identity provider cannot be reached now. Try again later, or use a token or an API key.",
  limited: "You have signed in too many times. Try again later.",
  refused: "The identity provider did not sign you in.",
  expired: "Signing in took too long, or was begun in another browser. Try again.",
  forbidden: "You are signed in at the identity provider, but it gives you no access here.",
});

/**
 * @typedef {Object} Person
 * @property {string} subject
 * @property {string[]} scopes
 * @property {boolean} renewable
 * @property {boolean} can_sign_out false if a proxy has signed the person in
 */

/**
 * Take the key of a link `/#key=…`, which a screen on a wall may open, and remove it from the address
 * at once, so that it cannot be read there. A browser sends no server the part of an address after #.
 *
 * @returns {string | undefined}
 */
export function takeKeyFromAddress() {
  return takeFromAddress(KEY_LINK);
}

/** Take the reason why signing in by an identity provider failed, if it did. */
export function takeFailureFromAddress() {
  const failure = takeFromAddress(FAILURE_LINK);
  return failure === undefined ? "" : (FAILURES[failure] ?? "Signing in failed.");
}

/** @param {string} link */
function takeFromAddress(link) {
  const { hash, href } = location;
  if (!hash.startsWith(link)) return undefined;
  history.replaceState(history.state, "", href.slice(0, href.indexOf("#")));
  try {
    return decodeURIComponent(hash.slice(link.length));
  } catch {
    return hash.slice(link.length);
  }
}

/** The session of this browser, as the server knows it. */
export class Session {
  #url;
  /** Called after each change. */
  onChange = () => {};
  /** Whether authentication is on. */
  required = false;
  /** Whether an identity provider signs in. */
  hasProvider = false;
  /** @type {Person | null} */
  person = null;
  /** Why the browser is not signed in; empty if there is nothing to say. */
  problem = "";

  /** @param {string} page the page's own address */
  constructor(page) {
    this.#url = new URL("auth/session", page).href;
    setInterval(() => void this.#renew(), RENEWAL_MS);
  }

  /** Ask the server who is signed in. */
  async load() {
    const had = this.person !== null;
    try {
      const answer = await this.#ask("GET");
      if (!answer.ok) return;
      const { authentication, provider, person } = await answer.json();
      this.required = authentication === true;
      this.hasProvider = provider === true;
      this.person = person ?? null;
    } catch {
      return; // the state of the stream says what is wrong
    }
    if (this.person !== null || !this.required) this.problem = "";
    else if (had) this.problem = "Your session has ended.";
    this.onChange();
  }

  /**
   * Sign in with a token or an API key.
   *
   * @param {string} credential
   */
  async signIn(credential) {
    this.problem = await this.#problemOf(credential);
    if (this.problem === "") await this.load();
    this.onChange();
    return this.problem === "";
  }

  /** @param {string} credential */
  async #problemOf(credential) {
    try {
      const answer = await this.#ask("POST", JSON.stringify({ credential: credential.trim() }));
      if (answer.ok || answer.status === 404) return ""; // 404: authentication is off
      const { detail } = await answer.json().catch(() => ({}));
      return `Not accepted: ${detail ?? `the server answers ${answer.status}`}.`;
    } catch {
      return "The server cannot be reached. Try again.";
    }
  }

  /**
   * End the session, and with it the streams of all tabs.
   *
   * @returns {Promise<boolean>} whether the server has ended it
   */
  async signOut() {
    try {
      const answer = await this.#ask("DELETE");
      if (!answer.ok) return false;
    } catch {
      return false;
    }
    this.person = null;
    this.problem = "";
    this.onChange();
    return true;
  }

  async #renew() {
    if (this.person?.renewable) await this.#ask("POST").catch(() => undefined); // again in an hour
  }

  /**
   * @param {string} method
   * @param {string} [body]
   */
  #ask(method, body) {
    const headers = { "Content-Type": "application/json" };
    const signal = AbortSignal.timeout(PATIENCE_MS);
    return fetch(this.#url, { method, signal, cache: "no-store", ...(body === undefined ? {} : { body, headers }) });
  }
}
