"""Draws a graph of the last hour as inline SVG. samples.py declares the graphs and provides their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from l2tpns.monitoring.samples import HOUR, PERIOD

WIDTH, HEIGHT = 420, 150
LEFT, RIGHT, TOP, BOTTOM = 42, 412, 10, 126
GAP = 3 * PERIOD  # seconds between two samples that interrupt a line

Points = Sequence[tuple[float, float | None]]  # (time, value), the oldest first


def draw(lines: Sequence[Points], now: float, title: str) -> str:
    """Return the SVG. `title` is not escaped. Data attributes carry the numbers that the script needs."""
    values = [value for points in lines for _, value in points if value is not None]
    top = nice(max(values, default=0.0))
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}" data-left="{LEFT}" data-right="{RIGHT}"'
        f' data-top="{TOP}" data-bottom="{BOTTOM}" data-max="{top:g}" data-seconds="{HOUR:g}">'
    ]
    for share in (0, 0.5, 1):
        y = BOTTOM - share * (BOTTOM - TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" y1="{y:.1f}" x2="{RIGHT}" y2="{y:.1f}"/>')
        parts.append(f'<text class="y" x="{LEFT - 6}" y="{y + 4:.1f}">{short(share * top)}</text>')
    for minutes in (60, 45, 30, 15, 0):
        x = RIGHT - minutes * 60 / HOUR * (RIGHT - LEFT)
        text = f"−{minutes} min" if minutes else "now"  # noqa: RUF001
        parts.append(f'<text class="x" x="{x:.1f}" y="{HEIGHT - 6}">{text}</text>')
    for number, points in enumerate(lines):
        for piece in pieces(points):
            places = [(_x(at, now), BOTTOM - min(value / top, 1.0) * (BOTTOM - TOP)) for at, value in piece]
            if len(places) == 1:
                places.append((places[0][0] + 1.5, places[0][1]))
            track = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            if number == 0:
                area = f"{places[0][0]:.1f},{BOTTOM} {track} {places[-1][0]:.1f},{BOTTOM}"
                parts.append(f'<polygon class="area" points="{area}"/>')
            parts.append(f'<polyline class="line c{number}" data-line="{number}" points="{track}"/>')
    parts.append("</svg>")
    return "".join(parts)


def pieces(points: Points) -> Iterator[list[tuple[float, float]]]:
    """Yield runs of values without a gap."""
    piece: list[tuple[float, float]] = []
    for at, value in points:
        if piece and (value is None or at - piece[-1][0] > GAP):
            yield piece
            piece = []
        if value is not None:
            piece.append((at, value))
    if piece:
        yield piece


def nice(highest: float) -> float:
    """Return the end of the scale: the smallest 1, 2 or 5 times a power of ten >= `highest`, at least 1."""
    if highest <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(highest))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= highest)


def short(value: float) -> str:
    """Return a number in few characters: 0.5, 12, 3.4k, 60k, 1.2M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:  # values that round up to the next unit
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _x(at: float, now: float) -> float:
    return max(float(LEFT), RIGHT - (now - at) / HOUR * (RIGHT - LEFT))
