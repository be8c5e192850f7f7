"""Text, tables and numbers as HTML. Every text that a peer can choose must pass through `e`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

MAX_TEXT = 200  # characters of a peer's text


def e(text: object) -> str:
    """Return text as HTML: markup is escaped; invisible and bidirectional control characters become dots."""
    shown = "".join(letter if letter.isprintable() else "·" for letter in str(text)[:MAX_TEXT])
    return html.escape(shown)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], empty: str) -> str:
    """Return a table. Cells are HTML. A heading that ends in `#` marks a column of numbers."""
    kinds = [' class="n"' if title.endswith("#") else "" for title in head]
    titles = "".join(f"<th{kind}>{title.rstrip('#')}</th>" for kind, title in zip(kinds, head, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) + "</tr>"
        for row in rows
    )
    if not body:
        return f'<p class="none">{empty}</p>'
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


# Numbers


def number(value: int) -> str:
    return f"{value:,}"


def octets(value: int) -> str:
    """Return octets with a decimal unit: 12 B, 3.4 kB, 56.7 GB."""
    if value < 1000:
        return f"{value} B"
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB")):
        if value >= 0.99995 * 1000**power:  # values that round up to this unit
            return f"{value / 1000**power:,.1f} {unit}"
    return f"{value / 1000:.1f} kB"


def duration(seconds: float) -> str:
    """Return a duration as 0:07, 12:34, 5:06:07 or 3 d 04:05:06."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"
