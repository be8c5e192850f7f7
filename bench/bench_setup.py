"""How many subscribers come online in a second, and how long each one waits.

    python -m bench setup [RUNS]

A storm of calls in four tunnels: ICRQ to IPCP open, PAP, an address of the pool each. "Full load" keeps 64 calls in
progress, so its latency is that of a queue; "at 200/s" is what a subscriber sees on a day without a storm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from bench.common import Bench, bring_up, c_available, middle, ours, print_figure, ratio, theirs
from tests.lab.storm import StormReport

CALLS, CALM_CALLS, CALM_RATE = 2000, 400, 200.0


def main(runs: int = 3) -> None:
    why = c_available()
    kinds = ["secrets file"] if why else ["secrets file", "FreeRADIUS", "C l2tpns, FreeRADIUS"]
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    costs: dict[str, list[float]] = {kind: [] for kind in kinds}
    storms: dict[str, list[StormReport]] = {kind: [] for kind in kinds}
    calms: dict[str, list[StormReport]] = {kind: [] for kind in kinds}
    for _ in range(runs):
        for kind in kinds:
            with server(kind) as bench:
                lacs = bench.tunnels()
                _, calm = bring_up(bench, lacs, CALM_CALLS, rate=CALM_RATE)
                before = bench.cpu()
                _, storm = bring_up(bench, lacs, CALLS, first=CALM_CALLS)
                costs[kind].append((bench.cpu() - before) / CALLS * 1e6)
                rates[kind].append(storm.rate)
                storms[kind].append(storm)
                calms[kind].append(calm)
    for kind in kinds:
        print_figure(
            f"set-up, PAP, {kind}",
            f"{middle(rates[kind])} sessions/s, {middle(costs[kind])} us of CPU each; latency "
            f"{percentiles(storms[kind])} ms at full load, {percentiles(calms[kind])} ms at {CALM_RATE:.0f}/s",
        )
    if why:
        print(f"set-up: the C l2tpns is left out: {why}")
    else:
        print_figure("set-up, ours to C (FreeRADIUS)", f"rate {ratio(rates[kinds[1]], rates[kinds[2]])}")


@contextmanager
def server(kind: str) -> Iterator[Bench]:
    if kind.startswith("C"):
        with theirs() as bench:
            yield bench
    else:
        radius = kind == "FreeRADIUS"
        with ours(radius=radius, users=0 if radius else CALLS + CALM_CALLS) as (bench, _):
            yield bench


def percentiles(reports: list[StormReport]) -> str:
    """Return figures of all calls of all runs together."""
    together = StormReport(0, 0, 0.0, [latency for report in reports for latency in report.latencies])
    return " ".join(f"p{share * 100:.0f} {together.percentile(share) * 1000:.1f}" for share in (0.5, 0.9, 0.99))
