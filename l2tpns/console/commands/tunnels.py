"""`show tunnels`, `drop tunnel`: the control connections to LACs.

Columns and labels are those of the manual (reference sections 4 and 5); JSON keys are declared beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import TYPE_CHECKING

from l2tpns.console.commands.arguments import SOME_TUNNELS, TUNNEL, find_tunnel
from l2tpns.console.grammar import Command, change
from l2tpns.console.output import Column, Output, Row, Table, sheet
from l2tpns.l2tp.tunnel import Tunnel, TunnelState
from l2tpns.runtime.text import printable

if TYPE_CHECKING:
    from l2tpns.console.shell import Shell


TUNNELS = Table(
    (
        Column("tunnel", "TID", 5),
        Column("hostname", "Hostname", -20),
        Column("address", "IP", -15),
        Column("state", "State", -7),
        Column("sessions", "Sessions", 8, lambda sessions: str(len(sessions))),
    )
)
PROFILES = Table(
    (
        Column("profile", "Profile", -20),
        Column("tunnels", "Tunnels", 7),
        Column("sessions", "Sessions", 8),
        Column("starting", "Starting", 8),
        Column("addresses", "Address", -18, ",".join),
        Column("host_names", "Host Name", -20, ",".join),
        Column("variables", "Own Variables", -20, ",".join),
    )
)
TUNNEL_LABELS = {
    "state": "State",
    "hostname": "Hostname",
    "profile": "Profile",
    "address": "Remote IP",
    "port": "Remote Port",
    "lac_tunnel": "Remote Tunnel",
    "rx_window": "Rx Window",
    "next_recv": "Next Recv",
    "next_send": "Next Send",
    "queue": "Queue Len",
    "last_packet_age": "Last Packet Age",
    "retransmissions": "Retransmissions",
    "sessions": "Sessions",
}


def tunnel_row(tunnel: Tunnel) -> Row:
    reliable = tunnel.reliable
    tunnel.heard_data()
    return {
        "tunnel": tunnel.id,
        "hostname": tunnel.host or "(none)",
        "profile": tunnel.profile or "(none)",
        "address": tunnel.peer[0],
        "port": tunnel.peer[1],
        "lac_tunnel": tunnel.peer_id,
        "state": TunnelState.CLOSING.value if tunnel.dropping else tunnel.state.value,
        "rx_window": reliable.peer_window,
        "next_recv": reliable.nr,
        "next_send": reliable.ns,
        "queue": reliable.unacked + reliable.queue_length,
        "last_packet_age": max(int(monotonic() - tunnel.last_heard), 0),
        "retransmissions": reliable.retransmissions,
        "sessions": sorted(tunnel.sessions),
    }


def show_tunnels(shell: Shell, *ids: str) -> Output:
    """Show all tunnels that are not closing, or the given ones in detail."""
    if not ids:
        return tunnels(shell, closing=False)
    found = [find_tunnel(shell.context, word) for word in ids]

    def lines() -> Iterator[str]:
        for tunnel in found:
            yield from sheet(f"Tunnel {tunnel.id}", TUNNEL_LABELS, tunnel_row(tunnel))

    return Output(lines, lambda: map(tunnel_row, found))


def show_all_tunnels(shell: Shell) -> Output:
    return tunnels(shell, closing=True)


def tunnels(shell: Shell, *, closing: bool) -> Output:
    lns = shell.context.lns

    def rows() -> Iterator[Row]:
        for tunnel_id in sorted(lns.tunnels):
            tunnel = lns.tunnels.get(tunnel_id)
            if tunnel is not None and (closing or tunnel.state is not TunnelState.CLOSING):
                yield tunnel_row(tunnel)

    return TUNNELS.output(rows)


def drop_tunnels(shell: Shell, *words: str) -> str:
    lns = shell.context.lns
    said = []
    for word in words:
        tunnel = lns.tunnels.get(int(word)) if word.isascii() and word.isdigit() and len(word) <= 5 else None
        if tunnel is None:
            said.append(f"Tunnel {printable(word)} not connected")
        elif tunnel.dropping or tunnel.state is TunnelState.CLOSING:
            said.append(f"Tunnel {tunnel.id} already being shut down")
        else:
            lns.drop_tunnel(tunnel)
            said.append(f"Tunnel {tunnel.id} shut down ({tunnel.host})")
    return "\n".join(said)


def show_lac(shell: Shell) -> Output:
    """Show the profiles of LACs, with the tunnels and sessions that have them now; the last row: those without one."""
    context = shell.context

    def rows() -> Iterator[Row]:
        profiles = context.config.lacs
        alive = [each for each in context.lns.tunnels.values() if each.state is not TunnelState.CLOSING]
        for name in (*profiles, *sorted({tunnel.profile for tunnel in alive} - {"", *profiles}), ""):
            profile = profiles.get(name)
            own = [tunnel for tunnel in alive if tunnel.profile == name]
            sessions = [session for tunnel in own for session in tunnel.sessions.values()]
            yield {
                "profile": name or "(none)",
                "tunnels": len(own),
                "sessions": len(sessions),
                "starting": sum(session.starting for session in sessions),
                "addresses": [str(network) for network in profile.addresses] if profile else [],
                "host_names": list(profile.host_names) if profile else [],
                "variables": list(profile.values) if profile else [],
            }

    return PROFILES.output(rows)


COMMANDS = (
    Command("show lac", "the profiles of LACs, and how many tunnels and sessions have each", show_lac),
    change("drop tunnel", "shut down tunnels and all their sessions", drop_tunnels, SOME_TUNNELS),
    Command("show tunnels", "all tunnels in summary, or the given ones in detail", show_tunnels, (TUNNEL,)),
    Command("show tunnels all", "all tunnels, including those that are closing", show_all_tunnels),
)
