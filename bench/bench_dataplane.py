"""How many packets the data path in user space forwards each way for each CPU second.

    python -m bench.bench_dataplane [SECONDS] [SESSIONS]        (root; namespaces of its own)

Only the loops of l2tpns.dataplane: no tunnels, no PPP; sessions are made directly. bench/blast.c sends and counts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from ipaddress import IPv4Network
from pathlib import Path as File
from time import process_time

from gevent import monkey

monkey.patch_all()

import gevent  # noqa: E402

from l2tpns.config.settings import Config  # noqa: E402
from l2tpns.dataplane.session_path import SessionPath, key_of  # noqa: E402
from l2tpns.dataplane.userspace import UserPlane  # noqa: E402
from l2tpns.runtime.counters import Counters  # noqa: E402
from tests.lab.memory_log import MemoryLog  # noqa: E402
from tests.lab.netns import Lab, Namespace, three_hosts  # noqa: E402

TUNNEL = 7
LAC, LNS, HOST = "192.0.2.2", "192.0.2.1", "198.51.100.2"
POOL = IPv4Network("10.64.0.0/16")
LAC_PORT = 40000


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    sessions = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    with tempfile.TemporaryDirectory() as scratch, Lab() as lab:
        blast = File(scratch, "blast")
        subprocess.run(["cc", "-O2", "-o", blast, File(__file__).with_name("blast.c")], check=True)
        lac, lns, host = three_hosts(lab, clients=str(POOL))
        counters = Counters()
        plane = UserPlane(Config(), counters, MemoryLog().get(), lambda *_: None)
        with lns.entered():
            plane.start()
            plane.serve([POOL])
            endpoint = plane.endpoint(LNS)
        addresses = [POOL[i + 1] for i in range(sessions)]
        for i, address in enumerate(addresses):
            path = SessionPath(key_of(TUNNEL, i + 1), endpoint, (LAC, LAC_PORT), 1, i + 1, lambda *_: None)
            plane.attach(path)
            plane.online(path, address, (), 1462)
        for size in (64, 1400):
            lines = "".join(f"{TUNNEL} {i + 1} {address}\n" for i, address in enumerate(addresses))
            common = (str(size), str(seconds), "0")
            measure(
                f"up {size}",
                counters,
                "tun_tx_packets",
                start(lac, scratch, lines, str(blast), "l2tp", LAC, str(LAC_PORT), LNS, "1701", *common, HOST),
            )
            lines = "".join(f"{address}\n" for address in addresses)
            measure(
                f"down {size}",
                counters,
                "tunnel_tx_packets",
                start(host, scratch, lines, str(blast), "udp", HOST, "5000", "9", *common),
            )
        plane.stop()


def start(namespace: Namespace, scratch: str, lines: str, *argv: str) -> subprocess.Popen[bytes]:
    File(scratch, "lines").write_text(lines)
    with open(File(scratch, "lines"), "rb") as stdin:
        return namespace.start(*argv, stdin=stdin)


def measure(what: str, counters: Counters, counter: str, sender: subprocess.Popen[bytes]) -> None:
    gevent.sleep(0.5)
    packets, cpu = getattr(counters, counter), process_time()
    while sender.poll() is None:
        gevent.sleep(0.2)
    packets, cpu = getattr(counters, counter) - packets, process_time() - cpu
    print(f"{what} octets: {packets / cpu / 1000:.0f} kpps per CPU-second, {cpu / packets * 1e6:.2f} us a packet")


if __name__ == "__main__":
    main()
