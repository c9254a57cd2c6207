"""A line chart as SVG: some lines over an axis of powers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, TOP = 640, 320, 70, 40
RIGHT, BOTTOM = WIDTH - 150, HEIGHT - 50
COLOURS = ("#1f5fa8", "#c2521b", "#2f8a3c", "#7a4aa0")


@dataclass(frozen=True)
class Line:
    """(x, y) points, x rising and above 0."""

    name: str
    points: Sequence[tuple[float, float]]


def _short(value: float) -> str:
    for factor, suffix in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{suffix}"
    return f"{value:g}"


def _round_up(value: float) -> float:
    """The next of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def chart(title: str, across: str, up: str, lines: Sequence[Line]) -> str:
    """The x axis is logarithmic, the y axis begins at 0. At least one point is needed."""
    xs = sorted({x for line in lines for x, _ in line.points})
    top = _round_up(max(y for line in lines for _, y in line.points) or 1)
    low, span = math.log(xs[0]), (math.log(xs[-1]) - math.log(xs[0])) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        along = LEFT + (RIGHT - LEFT) * (math.log(x) - low) / span
        return round(along, 1), round(BOTTOM - (BOTTOM - TOP) * y / top, 1)

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14" font-weight="bold">{escape(title)}</text>',
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">'
        f"{escape(across)}</text>",
        f'<text x="16" y="{(TOP + BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {(TOP + BOTTOM) / 2})">{escape(up)}</text>',
    ]
    for part in range(5):
        value = top * part / 4
        _, y = place(xs[0], value)
        out.append(f'<path d="M{LEFT} {y}H{RIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{_short(value)}</text>')
    for x in xs:
        at, _ = place(x, 0)
        out.append(f'<text x="{at}" y="{BOTTOM + 18}" text-anchor="middle">{_short(x)}</text>')
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        spots = [place(x, y) for x, y in line.points]
        path = "L".join(f"{x} {y}" for x, y in spots)
        out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in spots]
        y = TOP + 18 * number + 10
        out.append(f'<text x="{RIGHT + 12}" y="{y}" fill="{colour}">{escape(line.name)}</text>')
    return "\n".join([*out, "</svg>", ""])
