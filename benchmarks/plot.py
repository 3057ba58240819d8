"""Bar charts as SVG, for light pages and dark ones."""

from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 720
LABEL_WIDTH: Final = 280
VALUE_WIDTH: Final = 90
ROW: Final = 26
BAR: Final = 16
HEAD: Final = 58  # of a panel: its title, and the space above it

_STYLE: Final = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
rect { fill: #8c959f }
.own { fill: #0969da }
.own-text { font-weight: 600 }
line { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  rect { fill: #6e7681 } .own { fill: #58a6ff } line { stroke: #3d444d }
}
"""


class Bar(NamedTuple):
    """One bar: its name, its length, and the text at its end; `own` marks Routecast's."""

    label: str
    value: float
    text: str
    own: bool = False


class Panel(NamedTuple):
    """Bars that share a scale up to `most`; longer bars are cut off, and marked as such."""

    title: str
    bars: list[Bar]
    most: float


def draw(panels: list[Panel]) -> str:
    """Return panels, one below the other, as an SVG document."""
    top, parts = 0, []
    for panel in panels:
        parts.append(_panel(panel, top))
        top += HEAD + ROW * len(panel.bars)
    height = top + ROW // 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">\n<style>{_STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(panel: Panel, top: int) -> str:
    start, length = LABEL_WIDTH, WIDTH - LABEL_WIDTH - VALUE_WIDTH
    lines = [f'<text class="title" x="8" y="{top + 36}">{escape(panel.title)}</text>']
    for row, bar in enumerate(panel.bars):
        y = top + HEAD + row * ROW - BAR // 2
        width = max(length * min(bar.value / panel.most, 1), 1)
        text = f"{bar.text} …" if bar.value > panel.most else bar.text
        kind, weight = (' class="own"', ' class="own-text"') if bar.own else ("", "")
        middle = y + BAR - 4
        lines += [
            f'<text{weight} x="{start - 10}" y="{middle}" text-anchor="end">'
            f"{escape(bar.label)}</text>",
            f'<rect{kind} x="{start}" y="{y}" width="{width:.0f}" height="{BAR}" rx="2"/>',
            f'<text{weight} x="{start + width + 8:.0f}" y="{middle}">{escape(text)}</text>',
        ]
    bottom = top + HEAD + len(panel.bars) * ROW - BAR
    lines.append(f'<line x1="{start}" y1="{top + HEAD - 14}" x2="{start}" y2="{bottom}"/>')
    return "\n".join(lines)
