"""The seam between sessions and whatever carries their packets.

`UserPlane` (userspace.py) carries them in this process; another implementation may leave them in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from l2tpns.dataplane.endpoint import Endpoint, Peer
from l2tpns.dataplane.session_path import Path

OnControl = Callable[[bytes, Peer, Endpoint], None]


class DataPlane(Protocol):
    """What sessions and tunnels ask of the data path.

    A path's life: attach -> online -> offline -> detach; each may be repeated, and detach does what is left.
    """

    def start(self) -> None:
        """Open sockets and devices, start the loops. Raises ConfigError when that cannot be."""

    def stop(self) -> None:
        """Close everything, remove all kernel state."""

    def endpoint(self, address: str) -> Endpoint:
        """The socket on this address of ours, for a tunnel that is taken up again. Raises OSError."""

    def dedicate(self, endpoint: Endpoint) -> Endpoint:
        """A tunnel is up at this address of ours: return the socket that it shall use from now on. Does not yield."""

    def serve(self, prefixes: Iterable[IPv4Network]) -> None:
        """These are the pool's: route them here, whether or not anybody has the addresses."""

    def avoid(self, needed: Mapping[IPv4Network, str], connected: Collection[IPv4Network]) -> None:
        """No route leads to what is `needed` elsewhere, with the words for each, and no route of the pool's to
        `connected` networks; a session that has such an address gets a route of its own."""

    def leads_into_tun(self, address: IPv4Address) -> bool:
        """Whether packets for this address go into the tun device."""

    def subscriber_at(self, address: IPv4Address) -> Path | None:
        """The path that carries packets for this address, if there is one."""

    def attach(self, path: Path) -> None:
        """From now on data messages with path.key reach path.post."""

    def detach(self, path: Path) -> None:
        """The session is gone."""

    def online(self, path: Path, address: IPv4Address, routes: Iterable[IPv4Network], mru: int) -> None:
        """Carry IP packets between the session and its address and framed routes; `mru` is what the peer takes."""

    def offline(self, path: Path) -> None:
        """Carry no more IP packets."""

    def changed(self, path: Path) -> None:
        """Apply fields of `session_path.CHANGEABLE_FIELDS` that the caller has set. Does not yield.

        Not needed before `online`, which applies all of them.
        """

    def refresh(self, path: Path) -> None:
        """Bring the counters and last_... times of the path up to date, where they are kept elsewhere."""

    def send_frame(self, path: Path, protocol: int, information: bytes) -> None:
        """Send one PPP frame to the peer, with address, control and two octets of protocol."""
