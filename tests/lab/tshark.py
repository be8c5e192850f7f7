"""Check a capture with Wireshark's dissectors: malformed packets and expert warnings.

One group of complaints is explained and omitted: those about the subscribers' own TCP connections inside PPP. A
full queue drops segments (that is how TCP finds its rate), iperf3 resets the connections it has done with, tcpdump
itself misses packets of a fast transfer, and random octets look like Thrift. Everything else fails a test.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.lab.netns import run

WARNING = 0x600000  # epan/proto.h PI_WARN; notes (0x400000) are not warnings

INNER_TCP = re.compile(r":ppp:ip:tcp(:|$)")


@dataclass(frozen=True, slots=True)
class Finding:
    """Hold one packet that the dissectors complain about."""

    frame: int
    protocols: str
    message: str


def fields(capture: Path, wanted: list[str], display: str = "") -> list[list[str]]:
    """Return one list of values per packet that matches the display filter."""
    argv = ["tshark", "-n", "-r", str(capture), "-T", "fields", "-E", "separator=|", "-E", "occurrence=a"]
    for name in wanted:
        argv += ["-e", name]
    if display:
        argv += ["-Y", display]
    rows = [line.split("|") for line in run(*argv, timeout=300).splitlines()]
    return [row for row in rows if len(row) == len(wanted)]


def findings(capture: Path) -> list[Finding]:
    """Return malformed packets and expert warnings without an explanation."""
    wanted = ["frame.number", "frame.protocols", "_ws.expert.message"]
    rows = fields(capture, wanted, f"_ws.malformed || _ws.expert.severity >= {WARNING}")
    found = [Finding(int(number), protocols, message) for number, protocols, message in rows]
    return [one for one in found if not INNER_TCP.search(one.protocols)]


def summary(capture: Path, display: str = "") -> list[str]:
    """Return tshark's one line per packet, to show in a failing test."""
    argv = ["tshark", "-n", "-r", str(capture)]
    return run(*argv, *(["-Y", display] if display else []), timeout=300).splitlines()
