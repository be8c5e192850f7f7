"""What Wireshark's dissectors say about a capture: malformed packets and expert warnings.

One group of warnings is explained and left out: what the TCP dissector says of the subscribers' own connections inside
PPP. A full queue drops segments (that is how TCP finds its rate), iperf3 resets the connections it has done with, and
tcpdump itself misses packets of a fast transfer. Everything else fails a test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.lab.netns import run

WARNING = 0x600000  # epan/proto.h PI_WARN; notes (0x400000) are no warnings

INNER_TCP = re.compile(r":ppp:ip:tcp(:data)?$")


@dataclass(frozen=True, slots=True)
class Finding:
    """One packet that the dissectors complain about."""

    frame: int
    protocols: str
    message: str


def fields(capture: Path, wanted: list[str], display: str = "") -> list[list[str]]:
    """One list of values per packet that the display filter lets through."""
    argv = ["tshark", "-n", "-r", str(capture), "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]
    for name in wanted:
        argv += ["-e", name]
    if display:
        argv += ["-Y", display]
    rows = [line.split("|") for line in run(*argv, timeout=300).splitlines()]
    return [row for row in rows if len(row) == len(wanted)]


def findings(capture: Path) -> list[Finding]:
    """Malformed packets, and expert warnings without an explanation."""
    wanted = ["frame.number", "frame.protocols", "_ws.expert.message"]
    bad = [Finding(int(row[0]), row[1], row[2]) for row in fields(capture, wanted, "_ws.malformed")]
    for number, protocols, message in fields(capture, wanted, f"_ws.expert.severity >= {WARNING}"):
        if not INNER_TCP.search(protocols):
            bad.append(Finding(int(number), protocols, message))
    return bad


def summary(capture: Path, display: str = "") -> list[str]:
    """tshark's one line per packet, to show in a failing test."""
    argv = ["tshark", "-n", "-r", str(capture)]
    return run(*argv, *(["-Y", display] if display else []), timeout=300).splitlines()
