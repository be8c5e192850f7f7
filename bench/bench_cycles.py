"""Does anything leak? A hundred times 200 sessions up and down.

    python -m bench cycles[:CYCLES[:SESSIONS]]

Cycles end alternately by Terminate-Request and by CDN, every tenth with its tunnel by StopCCN. After every tenth cycle
the status line of the server (SIGUSR1) is read. At the end descriptors, greenlets, tunnels, routes and
addresses must be as at the start, and memory as after the first ten cycles, when the process has its working size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gevent

from bench.common import Bench, bring_up, ours, print_figure, settle
from l2tpns.l2tp.timing import TunnelTiming
from l2tpns.system.routes import PROTOCOL
from tests.lab.lac import Lac
from tests.lab.server import Server
from tests.lab.subscriber import Subscriber

GROWTH = 1024  # KiB of resident memory: less is noise
HELD = ("tunnels", "sessions", "online", "starting", "half_open", "pool_used", "greenlets", "descriptors")


def main(cycles: int = 100, sessions: int = 200) -> int:
    """Return the exit status: 1 if something leaked."""
    with ours(users=sessions, settings={"debug": 2, "echo_timeout": 0}) as (bench, server):
        lacs = bench.tunnels(1)  # the first one makes the server open its socket on that address
        start = state(bench, server)
        show("before", start)
        warm = start
        for cycle in range(1, cycles + 1):
            storm, _ = bring_up(bench, lacs, sessions)
            if cycle % 10 == 0:
                lacs[0].close()
                lacs = bench.tunnels(1)
            else:
                take_down(storm.subscribers, lacs[0], cycle % 2 == 0)
            if cycle % 10 == 0 or cycle == cycles:
                now = state(bench, server)
                show(f"after {cycle} cycles", now)
                warm = now if warm is start else warm
        # A tunnel that the LAC has closed still answers repeats of the StopCCN for a while (RFC 2661 5.7).
        if cycles >= 10:
            gevent.sleep(TunnelTiming().closed_linger + 1)
        end = state(bench, server)
        show("at the end", end)
        left = [name for name in (*HELD, "routes") if end[name] != start[name]]
        if end["rss_kib"] > warm["rss_kib"] + GROWTH:
            left.append("rss_kib")
        print_figure("cycles", f"{cycles} of {sessions} sessions; left behind: {', '.join(left) or 'nothing'}")
        return 1 if left else 0


def take_down(subscribers: Sequence[Subscriber], lac: Lac, by_cdn: bool) -> None:
    for subscriber in subscribers:
        if by_cdn:
            subscriber.hangup()
        else:
            subscriber.terminate()
    if not settle(lambda: not lac.sessions and lac.reliable.idle, 30):
        raise RuntimeError(f"{len(lac.sessions)} sessions did not end")


def state(bench: Bench, server: Server) -> dict[str, Any]:
    """Return the status line after the last session has ended, and our routes in the kernel."""
    for _ in range(100):
        count = len(server.log("status"))
        server.signal(10)
        facts = server.wait_for("status", count=count + 1)
        if not facts["sessions"]:
            break
    routes = bench.server.run("ip", "route", "show", "proto", str(PROTOCOL)).splitlines()
    return facts | {"routes": len(routes)}


def show(when: str, facts: dict[str, Any]) -> None:
    held = " ".join(f"{name} {facts[name]}" for name in (*HELD, "routes"))
    print(f"{when}: {held} rss {facts['rss_kib']} KiB", flush=True)
