"""Walled gardens: the cost of a change with many members, and of a login beside a full garden.

    python -m bench garden [THERE [LOGINS [RUNS]]]

Entering and leaving a garden in the kernel with 10, 1,000 and 10,000 members, compared to a rule for each address, as
in the manual. Then LOGINS logins beside THERE sessions in the garden, alternating with as many outside: rate, and CPU
of the server for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network

from bench.common import bring_up, middle, ours, print_figure, ratio
from l2tpns.system.firewall import Firewall
from l2tpns.system.garden_rules import GardenRules
from l2tpns.system.ipset import IpSets
from tests.lab.console import Console
from tests.lab.memory_log import MemoryLog
from tests.lab.netns import Lab
from tests.lab.storm import numbered_users

CHANGES = 2000
FIRST = 0x0A000000


def main(there: int = 10_000, logins: int = 1000, runs: int = 3) -> None:
    costs = {count: changes(count, rules=count <= 1000) for count in (10, 1000, 10_000)}
    print_figure("10,000 to 10 in the garden", f"in and out {costs[10_000] / costs[10]:.2f}")
    rates: dict[bool, list[float]] = {True: [], False: []}
    cpus: dict[bool, list[float]] = {True: [], False: []}
    filling: dict[bool, list[float]] = {True: [], False: []}  # CPU of each
    for _ in range(runs):
        for gardened in (False, True):
            full, rate, cpu = log_in(there, logins, gardened)
            filling[gardened].append(full * 1e6)
            rates[gardened].append(rate)
            cpus[gardened].append(cpu * 1e6)
    costs_to_none = ratio(filling[True], filling[False])
    print_figure(f"{there} logins into a garden", f"{middle(filling[True])} us of CPU each; to none {costs_to_none}")
    for gardened, where in ((False, "no garden"), (True, "a garden")):
        print_figure(
            f"{logins} logins, {there} in {where}",
            f"{middle(rates[gardened])}/s, {middle(cpus[gardened])} us of CPU each",
        )
    print_figure("garden to none", f"rate {ratio(rates[True], rates[False])}, CPU {ratio(cpus[True], cpus[False])}")


def changes(there: int, *, rules: bool) -> float:
    """Return the seconds for one entry and one exit."""
    with Lab() as lab:
        space = lab.namespace("cage")
        with space.entered():
            firewall = Firewall(MemoryLog().get())
            cage = GardenRules(firewall, IpSets())
            cage.build("garden")
            cage.fill("garden", [IPv4Network(FIRST + number) for number in range(there)])
            others = [IPv4Network(FIRST + there + number) for number in range(CHANGES)]
            entering = timed(lambda one: cage.add("garden", [one]), others)
            leaving = timed(lambda one: cage.remove("garden", [one]), others)
            words = f"in {entering * 1e6:.0f} us, out {leaving * 1e6:.0f} us"
            if rules:
                with firewall.change("nat") as (nat,):
                    for number in range(there):
                        nat.append("garden_users", f"-s {IPv4Network(FIRST + number)} -j garden")
                words += f"; a rule for each instead: in {timed(partial(append, firewall), others[:50]) * 1e6:.0f} us"
            print_figure(f"{there} in the garden", words)
            return entering + leaving


def append(firewall: Firewall, one: IPv4Network) -> None:
    with firewall.change("nat") as (nat,):
        nat.append("garden_users", f"-s {one} -j garden")


def timed(change: Callable[[IPv4Network], object], ones: list[IPv4Network]) -> float:
    """Return the seconds for each."""
    begun = time.monotonic()
    for one in ones:
        change(one)
    return (time.monotonic() - begun) / len(ones)


def log_in(there: int, logins: int, gardened: bool) -> tuple[float, float, float]:
    """Return CPU seconds for each member, logins a second beside them, and CPU seconds for each login."""
    with ours(users=there + logins) as (bench, _), Console(bench.server) as console:
        console.do("load plugin garden")
        lacs = bench.tunnels()
        before = bench.cpu()
        bring_up(bench, lacs, there, users=rejected if gardened else numbered_users)
        full = (bench.cpu() - before) / there
        inside = len(bench.server.run("ipset", "save").splitlines()) - 1 if gardened else 0
        assert inside == (there if gardened else 0), f"{inside} in the garden"
        before = bench.cpu()
        _, report = bring_up(bench, lacs, logins, first=there)
        return full, report.rate, (bench.cpu() - before) / logins


def rejected(number: int) -> tuple[bytes, bytes]:
    """Return name and password of a subscriber whose wrong password leads into the garden."""
    return numbered_users(number)[0], b"wrong"
