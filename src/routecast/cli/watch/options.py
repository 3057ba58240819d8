"""The choice of decisions in `routecast watch`, and how each key changes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from routecast.protocol import WINDOWS

Item = TypeVar("Item")

INTERVALS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_WINDOWS: Final = tuple(WINDOWS)

# The keys and their effects, as the help shows them; a capital letter goes in the other direction.
HELP: Final = (
    ("w W", "next or previous window: the time up to now that counts"),
    ("s S", "next or previous strategy; then all of them"),
    ("p P", "next or previous provider; then all of them"),
    ("+ -", "updates more or less often"),
    ("a", "all decisions, over all time"),
    ("? h", "show or hide this help"),
    ("q", "leave"),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """The decisions to show, their window, and the interval of updates in seconds."""

    window: str = "all"
    interval: float = 1.0
    strategy: tuple[str, ...] = ()
    provider: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    project: tuple[str, ...] = ()

    @property
    def filters(self) -> dict[str, tuple[str, ...]]:
        """The chosen names, by part (`strategy`, `provider` …)."""
        parts = ("strategy", "provider", "model", "project")
        return {part: names for part in parts if (names := getattr(self, part))}

    @property
    def asked(self) -> dict[str, Any]:
        """The choice as `Client.subscribe` takes it."""
        return {"window": self.window, "interval": self.interval, **self.filters}

    @property
    def words(self) -> str:
        """A description of the chosen decisions; empty for all."""
        words = [] if self.window == "all" else [f"the last {self.window}"]
        for part, names in self.filters.items():
            words += [f"{part} {name}" for name in names]
        return ", ".join(words)

    def pressed(self, key: str, known: Mapping[str, Sequence[str]]) -> "Choice":
        """Return the choice after a key; `known` are the existing strategies and providers."""
        match key:
            case "w" | "W":
                return replace(self, window=_next(_WINDOWS, self.window, key.isupper()))
            case "+" | "=":
                faster = [interval for interval in INTERVALS if interval < self.interval]
                return replace(self, interval=faster[-1] if faster else self.interval)
            case "-" | "_":
                slower = [interval for interval in INTERVALS if interval > self.interval]
                return replace(self, interval=slower[0] if slower else self.interval)
            case "s" | "S":
                return replace(self, strategy=_turn(known, "strategy", self.strategy, key))
            case "p" | "P":
                return replace(self, provider=_turn(known, "provider", self.provider, key))
            case "a":
                return Choice(interval=self.interval)
        return self


def footer(choice: Choice, width: int) -> str:
    """Return one line that lists the keys, as many as fit."""
    every = f"every {choice.interval:g} s"
    for line in (
        f"q leave   w window: {choice.window}   s strategy   p provider   + - {every}   "
        "a all   ? help",
        f"q leave  w window  s strategy  p provider  + - {every}  ? help",
        "q leave  w s p + - change  ? help",
    ):
        if len(line) <= width:
            return line
    return "? help"


def _turn(
    known: Mapping[str, Sequence[str]], part: str, chosen: tuple[str, ...], key: str
) -> tuple[str, ...]:
    """Return the next name of a part, or () for all of them."""
    turns = [(), *((name,) for name in known.get(part, ()))]
    return _next(turns, chosen if chosen in turns else (), key.isupper())


def _next(items: Sequence[Item], item: Item, back: bool) -> Item:
    return items[(items.index(item) + (-1 if back else 1)) % len(items)]
