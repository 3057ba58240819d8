/** The types of the wire (docs/protocol.md), and those of the client itself. */

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

/** The decisions that count: those that have one of the listed values in each listed part. */
export interface Filter {
  strategy?: string[];
  provider?: string[];
  model?: string[];
  project?: string[];
}

/** What to follow. Default: the fields of the default document, of all decisions. */
export interface View {
  fields?: Field[] | undefined;
  filter?: Filter | undefined;
  window?: "all" | "5m" | "1h" | "24h" | "7d" | undefined;
  /** Minimum seconds between two documents, 0.1 to 60. Without a change one comes every 25 s. Default 5. */
  interval?: number | undefined;
}

export interface Totals {
  count: number;
  /** Dollars. */
  avg_cost?: number;
  /** 0 to 1. */
  avg_confidence?: number;
}

/** The document of a view: the requested fields. An unknown value is missing, and never 0. */
export interface Metrics {
  total_decisions?: number;
  /** 0 to 1. */
  avg_confidence?: number;
  strategy_performance?: Record<string, Totals>;
  confidence_distribution?: { high: number; medium: number; low: number };
  provider_usage?: Record<string, number>;
  /** Dollars, and the numbers of decisions with and without a price. */
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

/** Identifies a state of the database: within an `epoch`, `seq` rises by one with each commit. */
export interface Position {
  epoch: string;
  seq: number;
}

/** Where the numbers of a document came from, best first. */
export type Source = "live" | "cache" | "database" | "stale";

/** About a document. On the default stream, which an older server has alone, only `timestamp` is known. */
export interface Frame {
  position: Position | null;
  source: Source | null;
  /** The age of the numbers when the document was sent, in ms. */
  age_ms: number | null;
  /** RFC 3339. */
  timestamp: string;
}

/** A request for a history. */
export interface HistoryView {
  /** RFC 3339, or a Date. Default: an hour before the end. */
  from?: string | Date | undefined;
  /** Default: now. */
  to?: string | Date | undefined;
  /** The largest number of buckets, at most 2,000. Default 300. */
  points?: number;
  group_by?: "strategy" | "provider" | "model" | "band" | "status" | undefined;
  fields?: Exclude<keyof Series, "key">[] | undefined;
  filter?: Filter | undefined;
  /** Whether to get further buckets as they close. */
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

/** The requested columns, with a value for each bucket; null if the bucket has none. */
export interface Series {
  /** A name of the part that `group_by` names, or `all`. */
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
 * - `connecting`: for the first time, or `again`
 * - `connected`: messages arrive
 * - `stale`: the connection is open, but no message arrives
 * - `reconnecting`: the connection is lost; the next attempt is due `at`, in ms since 1970
 * - `closed`: for good; `code` is the close code and `status` the HTTP status of the refusal
 */
export type State =
  | { name: "connecting"; again: boolean }
  | { name: "connected"; protocol: "routecast.v1" | "default" }
  | { name: "stale"; reason: string }
  | { name: "reconnecting"; at: number; reason: string }
  | { name: "closed"; reason: string; code: number | null; status: number | null };

export interface Options {
  /** The longest delay before the first attempt to reconnect, in ms. Default 5,000. */
  firstDelay?: number;
  /** The longest delay between two attempts, in ms, unless the server asks for more. Default 60,000. */
  longestDelay?: number;
  /**
   * Milliseconds of silence after which the client pings the server. After twice this time it is
   * stale, after three times it reconnects. Default 10,000.
   */
  patience?: number;
  /**
   * A token or an API key, or a function that returns one, or none: it is called before each attempt,
   * and when the server says that the token expires.
   */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /**
   * Whether each attempt to connect fetches a ticket with the token, and opens the connection with
   * that: for a proxy in between that lets no credential pass with an upgrade. Default false.
   */
  tickets?: boolean;
  /** A class to use if `globalThis` has none, as in Node.js 20. */
  WebSocket?: SocketClass;
}

/** The part of a WebSocket that the client uses. */
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
