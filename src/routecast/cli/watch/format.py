"""Formatting of numbers for a terminal. An unknown value is a dash, never a zero."""

from collections.abc import Iterable
from typing import Final

DASH: Final = "–"
_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_PARTS: Final = " ▏▎▍▌▋▊▉"


def count(value: int | None) -> str:
    """Format a whole number."""
    return DASH if value is None else f"{value:,}"


def confidence(value: float | None) -> str:
    """Format an average of 0..1."""
    return DASH if value is None else f"{value:.3f}"


def share(part: float | None, whole: float | None) -> str:
    """Format a share; a share that is not exactly 0 or 1 is not rounded to 0 % or 100 %."""
    if part is None or not whole:
        return DASH
    value = part / whole
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.1%}"


def rate(value: float | None) -> str:
    """Format events per second."""
    if value is None:
        return DASH
    if 0 < value < 0.005:
        return "<0.01"
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def money_digits(amounts: Iterable[float | None]) -> int:
    """Return the decimals that show three significant digits of each amount, at least 2."""
    digits = 2
    for amount in amounts:
        if amount and amount < 1:
            mantissa, exponent = f"{amount:.2e}".split("e")
            significant = len(mantissa.replace(".", "").rstrip("0"))
            digits = max(digits, significant - 1 - int(exponent))
    return min(digits, 9)


def money(amount: float | None, digits: int | None = None) -> str:
    """Format dollars, with the decimals of a column or of the amount itself."""
    if amount is None:
        return DASH
    return f"${amount:,.{money_digits([amount]) if digits is None else digits}f}"


def money_rate(amount: float | None) -> str:
    """Format dollars per time to three significant digits."""
    if amount is None:
        return DASH
    return money(float(f"{amount:.2e}")) if amount < 100 else f"${amount:,.0f}"


def latency(ms: float | None) -> str:
    """Format milliseconds to three significant digits, as ms or s."""
    if ms is None:
        return DASH
    value, unit = (ms, "ms") if ms < 999.5 else (ms / 1000, "s")
    written = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{written} {unit}"


def size(value: int | None) -> str:
    """Format bytes to three significant digits, in units of 1,000."""
    if value is None:
        return DASH
    amount = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:,.3g} TB" if amount < 999.5 else f"{amount:,.0f} TB"


def age(seconds: float) -> str:
    """Format a duration, as in `3 s` or `2 min`."""
    if seconds < 120:
        return f"{max(0, int(seconds))} s"
    return f"{int(seconds // 60)} min" if seconds < 7200 else f"{int(seconds // 3600):,} h"


def bar(part: float, whole: float, width: int) -> str:
    """Draw a part of a whole as a bar of at most `width` characters, to an eighth of one.

    A part over the whole, as a faulty server may send, is drawn as the whole.
    """
    part = min(max(part, 0), whole)
    eighths = round(8 * width * part / whole) if whole > 0 else 0
    full, rest = divmod(max(eighths, 1 if part > 0 else 0), 8)
    return "█" * full + (_PARTS[rest] if rest else "")


def chart(values: Iterable[float | None], height: int) -> list[str]:
    """Draw values as columns over zero, in `height` lines; None is a gap."""
    points = list(values)
    peak = max((value for value in points if value is not None), default=0)
    lines = []
    for row in reversed(range(height)):
        line = ""
        for value in points:
            filled = round(8 * height * value / peak) if value and peak else 0
            # Zero is drawn as a thin line, so that it does not look like a gap.
            if value is not None and row == 0:
                filled = max(filled, 1)
            line += _BLOCKS[min(max(filled - 8 * row, 0), 8)]
        lines.append(line)
    return lines
