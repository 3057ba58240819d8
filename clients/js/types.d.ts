/** The shapes that go over the wire (docs/protocol.md), and those of the client's own. */

export type Field =
  | "total_decisions"
  | "avg_confidence"
  | "strategy_performance"
  | "confidence_distribution"
  | "provider_usage"
  | "cost"
  | "tokens"
  | "latency_ms"
  | "errors"
  | "fallbacks"
  | "models"
  | "rate"
  | "savings";

/** Which decisions count: those with any of the values named, in every part that is named. */
export interface Filter {
  strategy?: string[];
  provider?: string[];
  model?: string[];
  project?: string[];
}

/** What to show. Without `fields`, those of the default document; without `filter`, all decisions. */
export interface View {
  fields?: Field[] | undefined;
  filter?: Filter | undefined;
  window?: "all" | "5m" | "1h" | "24h" | "7d" | undefined;
  /** Seconds between two documents, 0.1 to 60; one comes each 25 s all the same. Default 5. */
  interval?: number | undefined;
}

export interface Totals {
  count: number;
  /** Dollars. */
  avg_cost?: number;
  /** 0 to 1. */
  avg_confidence?: number;
}

/** The document of a view: the fields asked for. What is unknown is left out, and is not 0. */
export interface Metrics {
  total_decisions?: number;
  /** 0 to 1. */
  avg_confidence?: number;
  strategy_performance?: Record<string, Totals>;
  confidence_distribution?: { high: number; medium: number; low: number };
  provider_usage?: Record<string, number>;
  /** Dollars, and how many decisions are priced and unpriced. */
  cost?: { total?: number; priced: number; unpriced: number };
  tokens?: { input: number; output: number };
  latency_ms?: { avg?: number; p50?: number; p95?: number; p99?: number };
  errors?: { count: number; rate?: number };
  fallbacks?: number;
  models?: Record<string, Totals>;
  /** Decisions per second over the last minute. */
  rate?: number;
  savings?: { baseline?: string; total?: number };
  /** RFC 3339. */
  timestamp: string;
}

/** A place in the database's history: `seq` rises by one with each commit within an `epoch`. */
export interface Position {
  epoch: string;
  seq: number;
}

/** Where the state behind a document came from, best first. */
export type Source = "live" | "cache" | "database" | "stale";

/** What is known of a document. On the default stream of an older server only the timestamp is. */
export interface Frame {
  position: Position | null;
  source: Source | null;
  /** How old the state behind it was, in ms. */
  age_ms: number | null;
  /** RFC 3339. */
  timestamp: string;
}

/** What to ask of the past. */
export interface HistoryView {
  /** RFC 3339, or a Date. Default: an hour before the end. */
  from?: string | Date | undefined;
  /** Default: now. */
  to?: string | Date | undefined;
  /** Buckets at most, up to 2,000. Default 300. */
  points?: number;
  group_by?: "strategy" | "provider" | "model" | "band" | "status" | undefined;
  fields?: Exclude<keyof Series, "key">[] | undefined;
  filter?: Filter | undefined;
  /** Further buckets too, as they close. */
  follow?: boolean | undefined;
}

/** Buckets of `step` seconds, the first of them beginning at `from`. */
export interface History {
  position: Position;
  step: number;
  /** RFC 3339. */
  from: string;
  points: number;
  series: Series[];
}

/** A value for each bucket; null in those without one. Of the fields, those asked for. */
export interface Series {
  /** The name it is grouped by, or `all`. */
  key: string;
  count?: number[];
  cost?: (number | null)[];
  avg_cost?: (number | null)[];
  avg_confidence?: (number | null)[];
  input_tokens?: number[];
  output_tokens?: number[];
  errors?: number[];
  fallbacks?: number[];
  avg_latency_ms?: (number | null)[];
  p50_latency_ms?: (number | null)[];
  p95_latency_ms?: (number | null)[];
  p99_latency_ms?: (number | null)[];
}

/**
 * - `connecting`: for the first time or `again`
 * - `connected`: the server is heard
 * - `stale`: the connection is open, and nothing is heard
 * - `reconnecting`: lost; the next attempt is due `at`, in ms since 1970
 * - `closed`: for good; `code` is the close code and `status` the HTTP status of a server that refused
 */
export type State =
  | { name: "connecting"; again: boolean }
  | { name: "connected"; protocol: "routecast.v1" | "default" }
  | { name: "stale"; reason: string }
  | { name: "reconnecting"; at: number; reason: string }
  | { name: "closed"; reason: string; code: number | null; status: number | null };

export interface Options {
  /** Milliseconds before the first attempt to come back, at most. Default 5,000. */
  firstDelay?: number;
  /** Milliseconds between two attempts, at most, unless the server asks for more. Default 60,000. */
  longestDelay?: number;
  /**
   * Milliseconds of silence until the server is asked for a sign of life. After twice as many the
   * client is stale, after three times as many it connects again. Default 10,000.
   */
  patience?: number;
  /** A token of the server's, or what gives one before each attempt. */
  token?: string | (() => string | Promise<string>);
  /** Where `globalThis` has none, as in Node.js 20. */
  WebSocket?: SocketClass;
}

/** The part of a WebSocket that is used. */
export interface Socket {
  readonly protocol: string;
  onopen: ((event: any) => void) | null;
  onmessage: ((event: any) => void) | null;
  onclose: ((event: any) => void) | null;
  onerror: ((event: any) => void) | null;
  send(text: string): void;
  close(code?: number): void;
}

export type SocketClass = new (url: string, protocols?: string[]) => Socket;
