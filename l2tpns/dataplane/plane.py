"""The seam between sessions and whatever carries their packets.

UserPlane (user.py) carries them in this process; another implementation may leave them in the kernel. NullPlane
carries nothing and remembers what it was told, so that lives of tunnels and sessions are tested without root.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from time import monotonic
from typing import Protocol

from l2tpns.dataplane.session_path import Path
from l2tpns.dataplane.udp import Endpoint
from l2tpns.runtime.peer import Peer

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
        """The caller has altered path.peer, endpoint, the peer's ids, path.sequenced, caged, filters, tap, copy."""

    def refresh(self, path: Path) -> None:
        """Bring the counters and last_... times of the path up to date, where they are kept elsewhere."""

    def send_frame(self, path: Path, protocol: int, information: bytes) -> None:
        """Send one PPP frame to the peer, with address, control and two octets of protocol."""


class NullPlane:
    """A data plane that carries nothing: `frames` is what sessions sent, `paths` and `carried` what they asked for."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}
        self.carried: dict[int, tuple[IPv4Address, tuple[IPv4Network, ...], int]] = {}
        self.prefixes: list[IPv4Network] = []
        self.frames: list[tuple[Path, int, bytes]] = []
        self.endpoints: dict[str, Endpoint] = {}
        self.running = False

    def start(self) -> None:
        self.running = True

    def stop(self) -> None:
        self.running = False

    def endpoint(self, address: str) -> Endpoint:
        return self.endpoints[address]

    def dedicate(self, endpoint: Endpoint) -> Endpoint:
        return endpoint

    def serve(self, prefixes: Iterable[IPv4Network]) -> None:
        self.prefixes.extend(prefixes)

    def avoid(self, needed: Mapping[IPv4Network, str], connected: Collection[IPv4Network]) -> None:
        """Nothing is routed."""

    def leads_into_tun(self, address: IPv4Address) -> bool:
        return False

    def subscriber_at(self, address: IPv4Address) -> Path | None:
        return None

    def attach(self, path: Path) -> None:
        self.paths[path.key] = path

    def detach(self, path: Path) -> None:
        self.offline(path)
        if self.paths.get(path.key) is path:
            del self.paths[path.key]

    def online(self, path: Path, address: IPv4Address, routes: Iterable[IPv4Network], mru: int) -> None:
        self.carried[path.key] = (address, tuple(routes), mru)
        path.address, path.mru, path.online = address.packed, mru, True

    def offline(self, path: Path) -> None:
        self.carried.pop(path.key, None)
        path.online = False

    def changed(self, path: Path) -> None:
        path.changed()

    def refresh(self, path: Path) -> None:
        """Nothing is kept elsewhere."""

    def send_frame(self, path: Path, protocol: int, information: bytes) -> None:
        self.frames.append((path, protocol, information))

    def receive(self, path: Path, protocol: int, information: bytes) -> None:
        """For tests: a frame of the peer's."""
        path.last_rx = monotonic()
        path.post(protocol, information)
