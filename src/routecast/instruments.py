"""The Prometheus metrics of a node, for `GET /metrics`; docs/glossary.md lists them."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

# A time of creation for each counter would double the length of the text.
disable_created_metrics()  # type: ignore[no-untyped-call]  # -- the library left it untyped

_COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_TICK_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Instruments:
    """Counters, gauges and histograms of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"routecast_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"routecast_{name}", text, labels, registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"routecast_{name}_seconds", text, buckets=buckets, registry=registry)

        self.decisions = counter(
            "decisions",
            "Decisions by outcome: accepted, duplicate (sent again), conflict (the id of another "
            "decision), rejected (invalid), refused (no room, or no database).",
            "outcome",
        )
        self.field_warnings = counter(
            "field_warnings",
            "Fields of decisions that could not be used as they were sent, by field and code.",
            *("field", "code"),
        )
        self.commit_seconds = seconds("commit", "Duration of group commits.", _COMMIT_SECONDS)
        self.wal_bytes = gauge(
            "database_wal_bytes", "Length of SQLite's write-ahead log; NaN if there is none."
        )
        self.queue_depth = gauge("ingest_queue_decisions", "Decisions that wait for a commit.")
        self.folded = counter(
            "names_folded", "Decisions that count as `other` because a name is over its limit."
        )
        self.names = gauge("names", "Distinct names in use besides `other`, by part.", "part")
        self.names_limit = gauge("names_limit", "Limit of distinct names, by part.", "part")
        self.refused = counter(
            "requests_refused",
            "HTTP requests refused before they reached a route, by cause.",
            "cause",
        )
        self.limit_hits = counter(
            "limit_hits",
            "Times that a client was over its limit, by limit and mode: enforced, dry_run.",
            *("limit", "mode"),
        )
        self.prices_skipped = counter(
            "prices_skipped",
            "Decisions left without a cost because too many new models came at once.",
        )
        self.connections = gauge("connections", "Open streams: WebSockets and event streams.")
        self.opened = counter("connections_opened", "Streams opened.")
        self.closed = counter("connections_closed", "Streams closed, by close code.", "code")
        self.frames_sent = counter("frames_sent", "Frames given to sockets.")
        self.bytes_sent = counter("bytes_sent", "Bytes of the frames given to sockets.")
        self.conflated = counter(
            "frames_conflated", "Frames skipped because the client had not read the last one."
        )
        self.send_failures = counter("send_failures", "Streams ended because sending failed.")
        self.broadcast_seconds = seconds(
            "broadcast", "Duration from a tick to its last frame.", _TICK_SECONDS
        )
        self.ticks_merged = counter(
            "ticks_merged", "Ticks that came too late and were merged with the next one."
        )
        self.renders = counter("renders", "Documents rendered.")
        self.renders_waiting = gauge("renders_waiting", "Views that wait to be rendered.")
        self.ticks_stretched = counter(
            "ticks_stretched",
            "Ticks postponed because their clients had used up their rendering time.",
        )
        self.cache = counter(
            "cache", "Reads of the cached snapshot, by result: hit, miss, error.", "result"
        )
        self.reads = counter(
            "snapshots_served",
            "Reads of metrics, by source: live, cache, database, stale.",
            "source",
        )
        self.reloads = counter("live_reloads", "Times that live state loaded a snapshot.")
        self.live_cells = gauge("live_cells", "Cells that live state holds, packed or not.")
        self.live_bytes = gauge("live_bytes", "Approximate memory of live state.")
        self.live_room = gauge("live_room_bytes", "Memory that live state may take.")
        self.live_windows = gauge(
            "live_windows_uncovered", "Windows that live state has no room for."
        )
        self.position_seq = gauge("position_seq", "The seq of the live position.")
        self.bus_lag_seconds = gauge(
            "bus_lag_seconds", "Time from the start of the newest commit until live state had it."
        )
        self.bus_dropped = counter(
            "bus_messages_dropped", "Messages dropped because Redis did not take them in time."
        )
        self.service_failures = counter(
            "service_failures", "Failures of background services, by service.", "service"
        )
        self.service_restarts = counter(
            "service_restarts",
            "Times that a background service was started again after a crash, by service.",
            "service",
        )
        self.service_up = gauge(
            "service_up",
            "1 while a background service works, 0 while it fails; by service.",
            "service",
        )
        self.service_failed = gauge(
            "service_last_failure_timestamp_seconds",
            "Unix time of the last failure of a background service; 0 if there was none.",
            "service",
        )
        self.redis_up = gauge(
            "redis_up",
            "1 while Redis does all that the node needs, 0 while it does not; NaN without Redis.",
        )


def total_of(metric: Counter | Gauge | Histogram, suffix: str = "_total") -> float:
    """Return the value of a metric, summed over its labels; of a histogram, of one `suffix`."""
    samples = [sample for family in metric.collect() for sample in family.samples]
    plain = isinstance(metric, Gauge)
    return sum(each.value for each in samples if plain or each.name.endswith(suffix))
