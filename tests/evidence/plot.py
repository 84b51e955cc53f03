"""Plots as SVG, without a library: points and lines on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

Points = Sequence[tuple[float, float]]

WIDTH: Final = 560
HEIGHT: Final = 320
LEFT: Final = 76
RIGHT: Final = 150
TOP: Final = 44
BOTTOM: Final = 48
COLORS: Final = ("#0b6e4f", "#c8553d", "#33658a", "#8a6d3b")
_PREFIXES: Final = ((1e6, "M"), (1e3, "k"), (1.0, ""))


def svg(title: str, x_label: str, y_label: str, series: Mapping[str, Points]) -> str:
    """One plot. A line that rises with the slope of the dotted one costs in proportion."""
    points = [point for line in series.values() for point in line]
    x_low, x_high = _decades([x for x, _ in points])
    y_low, y_high = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(max(y, 10**y_low)) - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text transform="translate(18 {(TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]
    for exponent in range(x_low, x_high + 1):
        x, _ = place(10.0**exponent, 10.0**y_low)
        parts.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{_number(10.0**exponent)}</text>')
    for exponent in range(y_low, y_high + 1):
        _, y = place(10.0**x_low, 10.0**exponent)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(10.0**exponent)}</text>')
    rise = min(x_high - x_low, y_high - y_low)
    (x_1, y_1), (x_2, y_2) = place(10.0**x_low, 10.0**y_low), place(10.0 ** (x_low + rise), 10.0 ** (y_low + rise))
    parts.append(f'<path d="M{x_1:.1f} {y_1:.1f}L{x_2:.1f} {y_2:.1f}" stroke="#999" stroke-dasharray="2 4"/>')
    for number, (name, line) in enumerate(series.items()):
        color = COLORS[number % len(COLORS)]
        places = [place(x, y) for x, y in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
        y = TOP + 14 + 18 * number
        parts.append(f'<path d="M{right + 12} {y - 4}h16" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{right + 34}" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around all values."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return low, max(high, low + 1)


def _number(value: float) -> str:
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{value / size:g}{prefix}"
    return f"{value:g}"
