"""The seam between sessions and whatever carries their packets.

`UserPlane` (userspace.py) carries them in this process; another implementation may leave them in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple, Protocol

from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.dataplane.session_path import SessionPath
from l2tpns.runtime.peer import Peer

OnControl = Callable[[bytes, Peer, Endpoint], None]


@dataclass(frozen=True, slots=True)
class FastPathStatus:
    """The state of the fast path, for `show fastpath` and the metrics."""

    running: bool
    why_not: str  # empty if it is running
    interfaces: tuple[str, ...]  # whose packets the programs see, besides the tun device
    passed_over: Mapping[str, str]  # interfaces that the programs cannot serve, each with the reason
    sessions: int  # that the programs carry
    totals: Mapping[str, int]  # fastpath/layout.py TOTALS since the programs were loaded


class FastCounts(NamedTuple):
    """What the fast path has counted for a session since it came online, as far as its path's counters contain it."""

    in_octets: int = 0
    in_packets: int = 0
    out_octets: int = 0
    out_packets: int = 0


class DataPlane(Protocol):
    """What sessions and tunnels ask of the data path.

    A path's life is attach -> online -> offline -> detach. Each step may be repeated; detach does the steps left out.
    """

    def start(self) -> None:
        """Open sockets and devices, start the loops. Raises ConfigError, RepairError or WaitError."""

    @property
    def adopted(self) -> bool:
        """Return whether this data path goes on with the kernel state of an earlier process."""

    @property
    def carrying(self) -> bool:
        """Return whether the kernel has carried sessions of an earlier process since that has gone."""

    def hold(self) -> None:
        """Leave packets in the queues of the kernel until `resume`. Does not yield."""

    def resume(self) -> None:
        """Read packets, for all saved sessions are restored. Remove what no session needs."""

    def apply_config(self) -> None:
        """Follow settings that have changed."""

    def stop(self, *, keep: bool = False) -> None:
        """Close everything, and remove all kernel state unless it is kept for the next process."""

    def endpoint(self, address: str) -> Endpoint:
        """Return the socket of this local address, for a tunnel that is restored. Raises OSError."""

    def dedicate(self, endpoint: Endpoint) -> Endpoint:
        """Return the socket that a tunnel at this local address uses from now on: it has come up. Does not yield."""

    def serve(self, prefixes: Iterable[IPv4Network]) -> None:
        """Route the pool's prefixes here, whether or not their addresses are in use."""

    def avoid(self, needed: Mapping[IPv4Network, str], connected: Collection[IPv4Network]) -> None:
        """Route no packets here for networks that are `needed` elsewhere, given with the reason for each.

        Pool routes avoid `connected` networks too. A session that has an address there gets a route of its own.
        """

    def leads_into_tun(self, address: IPv4Address) -> bool:
        """Return True if packets to this address go into the tun device."""

    def subscriber_at(self, address: IPv4Address) -> SessionPath | None:
        """Return the path that carries packets to this address, None if there is none."""

    def attach(self, path: SessionPath) -> None:
        """Pass PPP frames of data messages with path.key to path.post from now on."""

    def detach(self, path: SessionPath) -> None:
        """Forget the path: its session has ended."""

    def online(self, path: SessionPath, address: IPv4Address, routes: Iterable[IPv4Network], mru: int) -> None:
        """Carry IP packets of the session's address and framed routes, of `mru` octets at most to the subscriber."""

    def offline(self, path: SessionPath) -> None:
        """Carry no more IP packets of this path."""

    def changed(self, path: SessionPath) -> None:
        """Apply fields of `session_path.CHANGEABLE_FIELDS` that the caller has set. Does not yield.

        The caller need not report a change before `online`, which applies all fields.
        """

    def refresh(self, path: SessionPath) -> None:
        """Bring the counters and last_... times of the path up to date if they are kept elsewhere."""

    def counted(self, path: SessionPath) -> FastCounts:
        """Return what the fast path had counted at the last `refresh`, for the saved state."""

    def go_on(self, path: SessionPath, counted: FastCounts) -> None:
        """Add what the fast path has counted beyond `counted` since the state of this path was saved.

        Called before the path is online.
        """

    def carrier(self, path: SessionPath) -> str:
        """Return what carries the packets of a session: "kernel", or "user space" with the reason in brackets."""

    def collect(self) -> None:
        """Bring the counters of the process up to date if some are kept elsewhere."""

    def retreat(self) -> None:
        """Carry every packet in this process from now on, unless the fast path goes on without: it is about to end."""

    def fast_path(self) -> FastPathStatus:
        """Return the state of the fast path."""

    def send_frame(self, path: SessionPath, protocol: int, information: bytes, *, checksum: bool = True) -> None:
        """Send one PPP frame to the LAC, nothing in its header compressed."""
