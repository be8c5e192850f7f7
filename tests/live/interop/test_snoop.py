"""Debian's xl2tpd and pppd, intercepted while they work (`make interop`): the copies are what passed the wire."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests.lab import PATIENCE
from tests.lab.console import Console
from tests.lab.inner import frames, inner
from tests.lab.interop import HOST, Stage, missing
from tests.lab.netns import run, wait_until
from tests.lab.pppd import Peer
from tests.lab.server import CHECKOUT

pytestmark = [
    pytest.mark.live,
    pytest.mark.interop,
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

LNS, PORT = "192.0.2.1", 9000


def test_a_real_client_is_copied_from_the_moment_on_and_does_not_notice() -> None:
    with Stage(secrets="fred * fredpw *\n", settings={"snoop_format": "framed"}) as stage:
        stage.server.start()
        directory = stage.lab.directory
        file, said = directory / "copies.pcapng", directory / "capture.said"
        with said.open("wb") as errors:
            argv = (sys.executable, "-m", "l2tpns.capture", "-a", HOST, "-p", str(PORT), str(file))
            receiver = subprocess.Popen(stage.host.command(*argv), cwd=CHECKOUT, stderr=errors)
            stage.host.processes.append(receiver)
        wait_until(lambda: b"listening" in said.read_bytes())
        near = stage.lab.capture(stage.lac, "tap0", directory / "near.pcap", "ip")  # fragments have no port to ask for
        with stage.scene([Peer("one", "fred", "fredpw", auth="chap")]) as clients:
            link = clients.dial("one")
            assert clients.ping(link, HOST) == 3
            with Console(stage.server_side) as console:
                assert "Snooping user fred" in console.do(f"snoop fred {HOST} {PORT}")
                assert sum(stage.iperf(link, "1M")) >= 1 << 20
                assert sum(stage.iperf(link, "1M", down=True)) >= 1 << 20
                assert clients.ping(link, HOST) == 3
                time.sleep(1.0)
                (row,) = console.rows("show snoop")
        receiver.send_signal(signal.SIGTERM)
        assert receiver.wait(PATIENCE) == 0
        passed = inner(near.stop(), LNS)
        run("tshark", "-r", str(file), "-F", "pcap", "-w", f"{file}.pcap")
        copies = [packet for _, packet in frames(file.with_suffix(".pcapng.pcap"))]
        assert row["lost"] == 0 and row["sent"] == len(copies) > 1000
        client = link.address.packed
        for way, place in (("up", slice(12, 16)), ("down", slice(16, 20))):
            ours = [packet for packet in copies if packet[place] == client]
            theirs = [packet for _, direction, packet in passed if direction == way]
            # tcpdump misses some of a fast transfer; what it has not missed was copied, from the first copy on.
            known = set(ours)
            begins = next(place for place, packet in enumerate(theirs) if packet in known)
            assert begins > 0 and not Counter(theirs[begins:]) - Counter(ours), way
        assert stage.server.stop() == 0
