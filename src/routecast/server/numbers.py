"""`Numbers`: the parts that make numbers of decisions, built and connected."""

import logging
import math
from functools import partial

from routecast.adapters.clock import SystemTimers
from routecast.core.cardinality import COMBINATION, CardinalityLimiter
from routecast.core.decision import Rules
from routecast.core.metrics import Baseline
from routecast.core.render_budget import RenderBudget
from routecast.core.topology import Topology
from routecast.errors import BadSettings
from routecast.instruments import Instruments
from routecast.ports import Prices, Store
from routecast.server.config import Settings
from routecast.server.engines import Engines
from routecast.services.history import HistoryService
from routecast.services.ingest import Ingest
from routecast.services.live_state import LiveState
from routecast.services.metrics_reader import MetricsReader
from routecast.services.position_poller import PositionPoller
from routecast.services.renders import Renders
from routecast.services.snapshot_loader import SnapshotLoader
from routecast.services.windows import Windows

log = logging.getLogger(__name__)

# Shares of the memory for live state: of a snapshot (the one in use, and another one while it is
# loaded), and of the answers to windows from the database.
SNAPSHOT_SHARE = 3 / 8
WINDOWS_SHARE = 1 / 4
# The setting that limits a part of names, if it is not ROUTECAST_MAX_NAMES.
_LIMITS = {COMBINATION: "ROUTECAST_MAX_SERIES"}


class Numbers:
    """Ingest, live state, documents and history of one application.

    Its parts are in the order in which a decision goes through them.
    """

    def __init__(self, settings: Settings, engines: Engines, topology: Topology) -> None:
        instruments, clock, timers = engines.instruments, engines.clock, SystemTimers()
        room = settings.live_memory * 2**20
        self.names = CardinalityLimiter(
            settings.max_names,
            settings.max_series,
            self._log_full,
            per_project=settings.max_series_per_project or None,
            on_full_project=_log_full_project,
        )
        _measure_names(self.names, instruments)
        instruments.wal_bytes.set_function(partial(_wal_bytes, engines.store))
        rules = Rules(
            high=settings.band_high,
            medium=settings.band_medium,
            price=engines.prices.cost if settings.prices else lambda *_: None,
        )
        self.loader = SnapshotLoader(
            engines.store,
            engines.cache,
            engines.bus,
            engines.cluster,
            clock,
            timers,
            instruments,
            topology,
            room=int(room * SNAPSHOT_SHARE),
        )
        self.windows = Windows(engines.store, clock, int(room * WINDOWS_SHARE))
        poller = PositionPoller(
            self.loader, engines.store, engines.bus, engines.cluster, timers, topology
        )
        self.live = LiveState(
            self.loader,
            engines.store,
            engines.bus,
            poller,
            clock,
            timers,
            self.names,
            instruments,
            topology,
        )
        self.ingest = Ingest(
            engines.store,
            engines.bus,
            clock,
            self.names,
            rules,
            instruments,
            engines.slices,
            self.live,
        )
        budget = RenderBudget()
        self.metrics = MetricsReader(
            self.live.current,
            self.live.last_known,
            self.loader,
            clock,
            instruments,
            _baseline(settings, engines.prices),
            windows=self.windows,
            settled=self.live.settled,
            budget=budget,
        )
        self.renders = Renders(self.metrics, budget, instruments, timers, engines.slices)
        self.history = HistoryService(engines.store, self.live.current, self.live.changes, clock)

    def _log_full(self, part: str) -> None:
        limit, setting = self.names.limits[part], _LIMITS.get(part, "ROUTECAST_MAX_NAMES")
        log.warning(
            "The limit of %s names for %s is reached: new ones count as `other`. Raise %s, or make "
            "room with `routecast names fold` or `routecast names forget`",
            *(f"{limit:,}", part, setting),
        )


def _log_full_project(project: str) -> None:
    log.warning(
        "The project %r has as many combinations of names as ROUTECAST_MAX_SERIES_PER_PROJECT "
        "allows: its new ones count as `other`",
        project,
    )


def _measure_names(names: CardinalityLimiter, instruments: Instruments) -> None:
    for part, limit in names.limits.items():
        instruments.names.labels(part).set_function(partial(names.used, part))
        instruments.names_limit.labels(part).set(limit)


def _wal_bytes(store: Store) -> float:
    size = store.condition.wal_bytes
    return math.nan if size is None else size


def _baseline(settings: Settings, prices: Prices) -> Baseline | None:
    if settings.baseline_model is None:
        return None
    price = prices.per_million(settings.baseline_model)
    if price is None:
        raise BadSettings(
            f"baseline_model (ROUTECAST_BASELINE_MODEL): no price is known of "
            f"{settings.baseline_model!r}"
        )
    if price.upto is not None:
        log.warning(
            "ROUTECAST_BASELINE_MODEL: %s has another price in requests of over %s input tokens. "
            "The field `savings` uses the one below that, since it knows sums of tokens only",
            *(settings.baseline_model, f"{price.upto:,}"),
        )
    return Baseline(settings.baseline_model, price.input, price.output)
