/** The operator's API: the requests of the page, and the types of the answers. */

/**
 * @typedef {Object} FollowedView a subscription of a connection
 * @property {string} id
 * @property {string[]} fields
 * @property {Record<string, string[]>} filter
 * @property {string} window
 * @property {number} interval seconds
 * @property {number | null} lag
 */

/**
 * @typedef {Object} Connection what open and closed connections have
 * @property {string} id
 * @property {string} node
 * @property {string} subject
 * @property {string | null} credential
 * @property {string} address
 * @property {string} client
 * @property {string} protocol
 * @property {string} started RFC 3339
 * @property {number} messages
 * @property {number} bytes
 * @property {number} saved_by_patches
 * @property {number | null} saved_by_compression
 * @property {number} conflated
 */

/**
 * @typedef {Connection & {
 *   expires: string | null, subscriptions: FollowedView[], histories: number, lag: number | null,
 *   pong_age: number | null, round_trip_ms: number | null, unsent: number,
 * }} OpenConnection
 */

/** @typedef {Connection & {ended: string, code: number, reason: string}} ClosedConnection */

/**
 * @template {Connection} T
 * @typedef {Object} ConnectionPage
 * @property {string} node the one that answers
 * @property {number} total
 * @property {string | null} next
 * @property {T[]} connections
 * @property {string | null} missing why connections of other nodes are not in it
 */

/**
 * @typedef {Object} NodeSummary counts since the start
 * @property {string} node
 * @property {string} host
 * @property {number} pid
 * @property {string} version
 * @property {string} role
 * @property {string} started
 * @property {string} at
 * @property {number} connections
 * @property {number} messages
 * @property {number} bytes
 * @property {{epoch: string, seq: number} | null} position
 * @property {number} queue
 * @property {number | null} bus_lag_seconds
 * @property {number} cpu_seconds
 * @property {number | null} memory_bytes
 */

/** @typedef {{node: string, nodes: NodeSummary[], missing: string | null}} NodeSummaries */

const PATIENCE_MS = 10_000;

/** An answer that is not the one that was asked for. `status` is 0 if there was none. */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {number} status
   */
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Asks one server. */
export class AdminApi {
  #base;

  /** @param {string} base the address of the server */
  constructor(base) {
    this.#base = new URL("v1/admin/", base);
  }

  /** @returns {Promise<NodeSummaries>} */
  nodes() {
    return this.#ask("GET", "nodes", {});
  }

  /**
   * @template {Connection} T
   * @param {Record<string, string>} query
   * @returns {Promise<ConnectionPage<T>>}
   */
  connections(query) {
    return this.#ask("GET", "connections", query);
  }

  /**
   * @param {string} id
   * @param {boolean} mayReturn whether the client may reconnect
   */
  async disconnect(id, mayReturn) {
    await this.#ask("DELETE", `connections/${encodeURIComponent(id)}`, { reconnect: String(mayReturn) });
  }

  /**
   * @param {string} subject
   * @param {boolean} mayReturn
   * @returns {Promise<{closed: number, missing: string | null}>}
   */
  disconnectAll(subject, mayReturn) {
    return this.#ask("DELETE", "connections", { subject, reconnect: String(mayReturn) });
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {Record<string, string>} query
   */
  async #ask(method, path, query) {
    const url = new URL(path, this.#base);
    url.search = new URLSearchParams(query).toString();
    let answer;
    try {
      answer = await fetch(url, { method, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    } catch {
      throw new ApiError("the server cannot be reached", 0);
    }
    if (answer.status === 204) return null;
    const body = await answer.json().catch(() => null);
    if (answer.ok && body) return body;
    throw new ApiError(body?.detail ?? `the server answers ${answer.status}`, answer.status);
  }
}
