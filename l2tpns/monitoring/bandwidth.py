"""The bandwidth line of `uptime` and dump_speed, computed from two samples of the counters (reference)."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import gevent

from l2tpns.config.settings import Config
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.log import Logger

MEGABIT = 1024**2 / 8  # octets; the manual's line uses binary megabits


@dataclass(frozen=True, slots=True)
class Sample:
    """Octets and packets counted so far, on the side of the LACs (udp) and of the tun device (eth)."""

    udp_rx: int
    udp_tx: int
    eth_rx: int
    eth_tx: int
    packets_in: int
    packets_out: int


def sample(counters: Counters) -> Sample:
    return Sample(
        udp_rx=counters.tunnel_rx_octets,
        udp_tx=counters.tunnel_tx_octets,
        eth_rx=counters.tun_rx_octets,
        eth_tx=counters.tun_tx_octets,
        packets_in=counters.tunnel_rx_packets,
        packets_out=counters.tun_rx_packets,
    )


def bandwidth_line(before: Sample, after: Sample, seconds: float) -> str:
    """Return `Bandwidth: UDP-ETH:rx/tx  ETH-UDP:rx/tx  TOTAL:sum   IN:pps OUT:pps`, in Mbit/s and packets/s."""
    udp_rx, udp_tx, eth_rx, eth_tx = (
        max(getattr(after, name) - getattr(before, name), 0)
        / seconds
        / MEGABIT  # 0 if the counters were cleared in between
        for name in ("udp_rx", "udp_tx", "eth_rx", "eth_tx")
    )
    packets_in = max(after.packets_in - before.packets_in, 0) / seconds
    packets_out = max(after.packets_out - before.packets_out, 0) / seconds
    return (
        f"Bandwidth: UDP-ETH:{udp_rx:.0f}/{eth_tx:.0f}  ETH-UDP:{eth_rx:.0f}/{udp_tx:.0f}  "
        f"TOTAL:{udp_rx + udp_tx + eth_rx + eth_tx:.1f}   IN:{packets_in:.0f} OUT:{packets_out:.0f}"
    )


class BandwidthMeter:
    """Computes the bandwidth line once a second; `dump_speed` logs it."""

    def __init__(self, config: Config, counters: Counters, log: Logger) -> None:
        self._config = config
        self._counters = counters
        self._log = log
        self.line = ""  # of the last second

    def run(self) -> None:
        """Measure until the greenlet is stopped."""
        before, at = sample(self._counters), monotonic()
        while True:
            gevent.sleep(1.0)
            after, now = sample(self._counters), monotonic()
            self.line = bandwidth_line(before, after, now - at)
            if self._config.dump_speed:
                self._log.critical("bandwidth", line=self.line)
            before, at = after, now
