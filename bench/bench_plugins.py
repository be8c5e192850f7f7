"""What plugins cost per packet: none, an empty packet hook, one that reads, one that changes, each shipped plugin.

    python -m bench plugins [RUNS [SECONDS]]

Like `forward` with 64 octets, up and down, on one server: CPU for each packet, each plugin after a run without any.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.bench_forward import SESSIONS, sessions
from bench.bench_forward import run as blast_run
from bench.common import compile_blast, middle, ours, print_figure, ratio
from l2tpns.plugins.loader import CHECKOUT
from tests.lab.console import Console

SIZE = 64
HOOKS = {
    "empty": "def plugin_packet_rx(event): pass\ndef plugin_packet_tx(event): pass\n",
    "looks": "def plugin_packet_rx(event): event.buf[9]\ndef plugin_packet_tx(event): event.buf[9]\n",
    "changes": (
        "def plugin_packet_rx(event): event.buf = event.buf[:-1] + b'x'\n"
        "def plugin_packet_tx(event): event.buf = event.buf[:-1] + b'x'\n"
    ),
}


def main(runs: int = 3, seconds: int = 2) -> None:
    blast = str(compile_blast())
    shipped = sorted(path.stem for path in CHECKOUT.glob("*.py"))
    results: dict[tuple[str, str], tuple[list[float], list[float]]] = {}  # packets a CPU second, without and with
    with ours(users=SESSIONS) as (bench, _), Console(bench.server) as console:
        folder = shelf(bench.lab.directory / "plugins")
        console.do(f"set plugin_dir {folder}")
        traffic = sessions(bench)

        def measure(way: str) -> float:
            before = bench.cpu()
            _, arrived, _ = blast_run(traffic, blast, way, SIZE, seconds, 0)
            return arrived / (bench.cpu() - before)

        for _ in range(runs):
            for name in (*HOOKS, *shipped):
                for way in ("up", "down"):
                    without, loaded = results.setdefault((way, name), ([], []))
                    without.append(measure(way))
                    said = console.do(f"load plugin {name}")
                    assert "Loading" in said, said
                    loaded.append(measure(way))
                    console.do(f"remove plugin {name}")
    for (way, name), (without, loaded) in results.items():
        print_figure(
            f"{way} {SIZE} octets, {name}",
            f"{middle([1e6 / rate for rate in loaded])} us of CPU a packet; "
            f"rate to that without any {ratio(loaded, without)}",
        )


def shelf(folder: Path) -> Path:
    """Return the hooks of this file and the shipped plugins."""
    folder.mkdir()
    for path in CHECKOUT.glob("*.py"):
        shutil.copy(path, folder)
    for name, source in HOOKS.items():
        (folder / f"{name}.py").write_text(source)
    return folder
