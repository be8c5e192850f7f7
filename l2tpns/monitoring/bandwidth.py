"""The bandwidth line of the manual, from the counters of two moments (reference: uptime, dump_speed)."""

from __future__ import annotations

from dataclasses import dataclass

from l2tpns.runtime.counters import Counters

MEGABIT = 1024**2 / 8  # octets, as the line has always counted them


@dataclass(frozen=True, slots=True)
class Sample:
    """Octets and packets so far, on the LACs' side (udp) and on the tun device's (eth)."""

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
    """`Bandwidth: UDP-ETH:rx/tx  ETH-UDP:rx/tx  TOTAL:sum   IN:pps OUT:pps`, speeds in Mbit/s."""
    udp_rx, udp_tx, eth_rx, eth_tx = (
        max(getattr(after, name) - getattr(before, name), 0) / seconds / MEGABIT  # cleared in between: not below 0
        for name in ("udp_rx", "udp_tx", "eth_rx", "eth_tx")
    )
    packets_in = max(after.packets_in - before.packets_in, 0) / seconds
    packets_out = max(after.packets_out - before.packets_out, 0) / seconds
    return (
        f"Bandwidth: UDP-ETH:{udp_rx:.0f}/{eth_tx:.0f}  ETH-UDP:{eth_rx:.0f}/{udp_tx:.0f}  "
        f"TOTAL:{udp_rx + udp_tx + eth_rx + eth_tx:.1f}   IN:{packets_in:.0f} OUT:{packets_out:.0f}"
    )
