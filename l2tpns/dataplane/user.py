"""The data plane in user space: the sockets, the tun device and the two loops put together."""

from __future__ import annotations

import errno
from _socket import socket as RawSocket
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from socket import AF_INET, IPPROTO_RAW, SOCK_RAW, inet_ntoa
from time import monotonic

import gevent

from l2tpns.config import Config
from l2tpns.counters import Counters
from l2tpns.dataplane.forward import Forwarder, mss_for
from l2tpns.dataplane.loop import Clock, drain_forever
from l2tpns.dataplane.path import MINIMUM_MTU, Path
from l2tpns.dataplane.plane import OnControl
from l2tpns.dataplane.tun import Tun, tun_drain
from l2tpns.dataplane.udp import L2TP_PORT, Endpoint, LacSide
from l2tpns.errors import ConfigError
from l2tpns.log import Logger
from l2tpns.system.netlink import Netlink
from l2tpns.system.routes import Routes


class UserPlane:
    """DataPlane by two kinds of greenlets: a reader for each UDP socket, one for the tun device.

    `on_lost` is called by the reader when the tun device was deleted: nothing can be carried any more, and the server
    has to leave. It must not stop the plane itself, only have it stopped.
    """

    def __init__(
        self,
        config: Config,
        counters: Counters,
        log: Logger,
        on_control: OnControl,
        *,
        on_lost: Callable[[], None] | None = None,
        port: int = L2TP_PORT,
    ) -> None:
        self.config = config
        self.counters = counters
        self.clock = Clock(monotonic())
        self._log = log
        self._on_lost = on_lost
        self._forwarder = Forwarder(config, counters, self.clock, self._write, self._send_error)
        self.lacs = LacSide(
            config.listen_addresses,
            counters,
            self.clock,
            log,
            uplink=self._forwarder.uplink,
            on_control=on_control,
            port=port,
            data_checksums=config.data_checksums,
        )
        self._tun: Tun | None = None
        self._errors: RawSocket | None = None
        self._netlink: Netlink | None = None
        self._routes: Routes | None = None
        self._reader: gevent.Greenlet[..., None] | None = None
        self._installed: dict[int, tuple[IPv4Network, ...]] = {}  # kernel routes by path.key

    @property
    def now(self) -> float:
        """Monotonic time as of the last packets; what path.last_rx and its like are stamped with."""
        return self.clock.now

    # Life

    def start(self) -> None:
        """Raises ConfigError when a socket or the device cannot be had; then nothing is left open."""
        try:
            self.lacs.start()
            self._tun = tun = Tun(self.config.tundevicename)
            self._netlink = Netlink()
            tun.set_up(self._netlink, IPv4Interface(self.config.tun_address), self.config.mru)
            self._errors = _error_socket()
            self._routes = Routes(self._netlink, tun.index, self._log)
            self._routes.start()
            self._forwarder.write = tun.write
        except BaseException:
            self.stop()
            raise
        self._reader = gevent.spawn(self._read_tun, tun)
        self._log.info("tun_up", device=tun.name, address=str(self.config.tun_address), mtu=self.config.mru)

    def stop(self) -> None:
        """Close everything; kernel routes go first, the device's others with it."""
        if self._reader is not None:
            self._reader.kill()
            self._reader = None
        self.lacs.stop()
        if self._routes is not None:
            self._routes.stop()
            self._routes = None
        if self._tun is not None:
            self._forwarder.write = self._write
            self._tun.close()
            self._tun = None
        if self._netlink is not None:
            self._netlink.close()
            self._netlink = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _read_tun(self, tun: Tun) -> None:
        drain_forever(tun.fd, lambda: tun_drain(tun, self.counters, self._tick, self._forwarder.downlink), self._log)
        if self._on_lost is not None:
            self._on_lost()

    def _tick(self) -> None:
        self.clock.now = monotonic()

    def _write(self, packet: bytes) -> int:
        """Before there is a device and after it: nobody should ask, and no other descriptor gets the packet."""
        raise OSError(errno.ENODEV, "no tun device")

    def _send_error(self, packet: bytes) -> bool:
        """An ICMP packet of ours, by a raw socket: from the tun device the kernel would not take our own address."""
        assert self._errors is not None
        try:
            self._errors.sendto(packet, (inet_ntoa(packet[16:20]), 0))
        except OSError:
            return False
        return True

    # Sessions

    def endpoint(self, address: str) -> Endpoint:
        """The socket on this address of ours, for a tunnel that is taken up again. Raises OSError."""
        return self.lacs.endpoint(address)

    def serve(self, prefixes: Iterable[IPv4Network]) -> None:
        """Route the pool's prefixes to the tun device; who has an address of a former one gets a route of its own."""
        routes = self._routes
        if routes is None:
            return
        gone = routes.take_pool(prefixes)
        if not gone:
            return
        for path in self.lacs.paths.values():
            if path.online and not routes.covers(address := IPv4Address(path.address)):
                single = IPv4Network(address)
                installed = self._installed.get(path.key, ())
                if single not in installed:
                    self._installed[path.key] = (single, *installed)
                    routes.add((single,))
        routes.remove(gone)

    def attach(self, path: Path) -> None:
        self.lacs.paths[path.key] = path

    def detach(self, path: Path) -> None:
        self.offline(path)
        if self.lacs.paths.get(path.key) is path:
            del self.lacs.paths[path.key]

    def online(self, path: Path, address: IPv4Address, routes: Iterable[IPv4Network], mru: int) -> None:
        """Carry IP. A path that is online already gets the new address, routes and MRU."""
        self.offline(path)
        path.address = address.packed
        path.routes = tuple(routes)
        path.networks = tuple((int(route.netmask), int(route.network_address)) for route in path.routes)
        path.mru = max(min(mru, self.config.mru), MINIMUM_MTU)
        path.mss = mss_for(path.mru)
        path.online = True
        self._forwarder.table.add(path, path.address, path.routes)
        if self._routes is not None:
            single = () if self._routes.covers(address) else (IPv4Network(address),)
            self._installed[path.key] = wanted = (*single, *path.routes)
            self._routes.add(wanted)

    def offline(self, path: Path) -> None:
        """No more IP; what is on its way to the address becomes `host unreachable`."""
        if not path.online:
            return
        path.online = False
        self._forwarder.table.remove(path, path.address, path.routes)
        installed = self._installed.pop(path.key, ())
        if self._routes is not None:
            self._routes.remove(installed)

    def changed(self, path: Path) -> None:
        path.changed()

    def refresh(self, path: Path) -> None:
        """The counters are kept in the path itself."""

    def send_frame(self, path: Path, protocol: int, information: bytes) -> None:
        path.endpoint.send(path.frame(protocol, information), path.peer)


def _error_socket() -> RawSocket:
    """For ICMP with a header of our own; IPPROTO_RAW never receives."""
    try:
        sock = RawSocket(AF_INET, SOCK_RAW, IPPROTO_RAW)
    except OSError as error:
        raise ConfigError(f"a raw socket cannot be had: {error.strerror}; CAP_NET_RAW is needed") from None
    sock.setblocking(False)
    return sock
