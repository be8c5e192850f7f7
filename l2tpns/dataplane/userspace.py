"""The data plane in user space: UDP sockets, tun device, kernel routes and the two readers put together.

Implements plane.DataPlane. forward.py decides about packets, udp.py about sockets, system/ changes the kernel.
"""

from __future__ import annotations

import errno
from _socket import socket as RawSocket
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from socket import AF_INET, IPPROTO_RAW, SOCK_RAW, inet_ntoa
from time import monotonic

import gevent
from gevent.event import Event

from l2tpns.config.settings import L2TP_OVERHEAD, Config
from l2tpns.dataplane.endpoint import Endpoint
from l2tpns.dataplane.forward import Forwarder, mss_for
from l2tpns.dataplane.plane import FastCounts, FastPathStatus, OnControl
from l2tpns.dataplane.session_path import MIN_MTU, SessionPath
from l2tpns.dataplane.tun_reader import drain_tun
from l2tpns.dataplane.udp import LacSide
from l2tpns.errors import L2tpnsError, refused
from l2tpns.proto.l2tp.header import PORT
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.descriptor_store import DescriptorStore
from l2tpns.runtime.drain import Clock, drain_forever, opened
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.routes import Routes
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.surroundings import Surroundings
from l2tpns.system.tun_device import QUEUE_LENGTH, Tun, remove_kept
from l2tpns.system.tun_watch import Device, TunWatch

RETRY_DELAYS = (0.0, 0.1, 0.5, 1.0, 2.0, 5.0)  # seconds before each attempt to recreate a device that was deleted
TUN = "tun"  # its name in the descriptor store


class UserPlane:
    """The DataPlane of two kinds of greenlets: a reader for each UDP socket and one for the tun device.

    A tun device that was deleted is created again with its address and routes, unnoticed by sessions; `on_device` is
    then called with its new index. If it cannot be created, nothing can be carried any more and the server must exit:
    the reader calls `on_lost`, which must not stop the plane itself, only cause it to be stopped.
    """

    def __init__(
        self,
        config: Config,
        counters: Counters,
        log: Logger,
        on_control: OnControl,
        *,
        on_lost: Callable[[], None] | None = None,
        on_surroundings: Callable[[Surroundings], None] | None = None,
        port: int = PORT,
        supervisor: Supervisor | None = None,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
        clock: Callable[[], float] = monotonic,
        mark: str = "",
        store: DescriptorStore | None = None,
    ) -> None:
        """Prepare the data path. With save_state, `store` keeps descriptors, and with a `mark` the tun device stays."""
        self.config = config
        self._mark = mark
        self._store = store or DescriptorStore()
        self._reading = opened()  # set while packets are read
        self.counters = counters
        self.clock = Clock(clock)
        self._log = log
        self._on_lost = on_lost
        self._retry_delays = retry_delays
        self.on_device: Callable[[int], None] = lambda index: None
        self._supervisor = supervisor or Supervisor(log)
        self._on_surroundings = on_surroundings
        self.restore_queues: Callable[[], list[str]] = list  # replaced if there is a shaper
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
            supervisor=self._supervisor,
            reading=self._reading,
            store=self._store,
        )
        self._forwarder.l2tp_addresses = self.lacs.sources
        self._forwarder.on_own_l2tp = self._report_own_l2tp
        self._tun: Tun | None = None
        self._errors: RawSocket | None = None
        self._netlink: Netlink | None = None
        self._routes: Routes | None = None
        self._tun_watch: TunWatch | None = None
        self._reader: Part | None = None
        self._installed: dict[int, tuple[IPv4Network, ...]] = {}  # kernel routes of single paths, by path.key

    @property
    def now(self) -> float:
        """Monotonic time as of the last drain, as in path.last_rx and path.last_ip_tx."""
        return self.clock.now

    # Life

    def hold(self) -> None:
        """Leave packets in the queues of the kernel until `resume`. Does not yield."""
        self._reading.clear()

    def resume(self) -> None:
        """Read packets, and remove the routes that an earlier process has left for no session."""
        if self._routes is not None:
            self._routes.settle()
        self._store.close_rest()
        self._reading.set()

    @property
    def adopted(self) -> bool:
        """Return whether the tun device is one that an earlier process has kept."""
        return self._tun is not None and self._tun.adopted

    @property
    def carrying(self) -> bool:
        return False

    def start(self) -> None:
        """Open sockets and device, start the readers. Raises ConfigError, RepairError or WaitError, with all closed."""
        try:
            self._store.want(self.config.save_state)
            self.lacs.start()
            self._forwarder.l2tp_port = self.lacs.port.to_bytes(2, "big")
            self._netlink = netlink = Netlink()
            if self._mark:
                for name in remove_kept(netlink, self._mark, but=self.config.tundevicename):
                    self._log.warning("tun_removed", device=name, why="an earlier process kept it, under another name")
            self._tun = tun = self._create_tun(netlink)
            self._errors = _error_socket()
            self._routes = Routes(self._netlink, tun.index, self._log)
            self._routes.start()
            if self._reading.is_set():
                self._routes.settle()
            self._watch_tun(tun, self._routes)
            self._forwarder.write = tun.write
        except BaseException:
            self.stop()
            raise
        self._reader = self._supervisor.spawn("tun reader", self._read_tun, essential=True)
        facts = {"device": tun.name, "address": str(self.config.tun_address), "mtu": self.config.mru}
        self._log.info("tun_up", **facts, adopted=tun.adopted)

    def stop(self, *, keep: bool = False) -> None:
        """Close everything. With `keep` the device and its routes stay for the next process, if they may."""
        if self._reader is not None:
            self._reader.stop()
            self._reader = None
        if self._tun_watch is not None:
            self._tun_watch.stop()
            self._tun_watch = None
        if not keep:
            self._store.want(False)
        self.lacs.stop()
        if self._tun is not None and not keep:
            with suppress(NetlinkError):
                self._tun.keep(False)
        if self._routes is not None:
            self._routes.stop(keep=keep)
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

    def _create_tun(self, netlink: Netlink) -> Tun:
        """Return a tun device that is up. Raises ConfigError, RepairError or WaitError."""
        tun = Tun(self.config.tundevicename, netlink, self._mark, self._store.take(TUN))
        self._store.offer(TUN, tun.fd, inherited=tun.inherited)
        try:
            tun.set_up(netlink, IPv4Interface(self.config.tun_address), self.config.mru)
            self._keep(tun)
        except BaseException:
            self._store.withdraw(TUN)
            tun.close()
            raise
        return tun

    def _keep(self, tun: Tun) -> None:
        """Have the device and the sockets outlive this process, or not, as save_state says. A refusal is logged."""
        self._store.want(self.config.save_state)
        try:
            tun.keep(self.config.save_state)
        except NetlinkError as error:
            self._log.warning("tun_not_kept", device=tun.name, why=str(error))

    def apply_config(self) -> None:
        """Follow settings that have changed."""
        if self._tun is not None:
            self._keep(self._tun)

    def _watch_tun(self, tun: Tun, routes: Routes) -> None:
        """Keep this device as it was set up, and no longer the one before it."""
        if self._tun_watch is not None:
            self._tun_watch.stop()
        self._tun_watch = TunWatch(
            Device(tun.index, tun.name, IPv4Interface(self.config.tun_address), self.config.mru, QUEUE_LENGTH),
            routes,
            self._log,
            on_surroundings=self._on_surroundings or (lambda _: None),
            restore_queues=lambda: self.restore_queues(),
            supervisor=self._supervisor,
        )
        self._tun_watch.start()

    def _read_tun(self) -> None:
        """Read the tun device, and each device that replaces it, until none can be created."""
        while self._tun is not None or self._recreate_tun():
            tun = self._tun
            assert tun is not None
            drain = partial(drain_tun, tun, self.counters, self._tick, self._forwarder.downlink)
            drain_forever(tun.fd, drain, self._reading, self._log)
            self._forwarder.write = self._write  # before another file can get the descriptor's number
            self._tun = None
            self._store.withdraw(TUN)
            tun.close()
        if self._on_lost is not None:
            self._on_lost()
        Event().wait()  # until the server stops

    def _recreate_tun(self) -> bool:
        """Create the device that was deleted, as it was. Return False if all attempts fail. May yield."""
        assert self._netlink is not None and self._routes is not None
        for pause in self._retry_delays:
            gevent.sleep(pause)
            try:
                tun = self._create_tun(self._netlink)
            except (OSError, L2tpnsError) as error:
                self._log.error("tun_not_made", device=self.config.tundevicename, why=str(error))
                continue
            try:
                self._watch_tun(tun, self._routes)
            except L2tpnsError as error:
                self._log.error("tun_not_restored", device=tun.name, why=str(error))
            self._tun = tun
            self._forwarder.write = tun.write
            routes = self._routes.move(tun.index)
            self._log.warning("tun_made_again", device=tun.name, routes=routes, why="it was deleted")
            self.on_device(tun.index)
            return True
        return False

    def _tick(self) -> None:
        self.clock.now = self.clock.read()

    def _write(self, packet: bytes) -> int:
        """Refuse a packet while there is no device, so that no other descriptor gets it. Raises OSError."""
        raise OSError(errno.ENODEV, "no tun device")

    def _report_own_l2tp(self, packet: bytes) -> None:
        """Log that the kernel routed one of this server's L2TP packets into the tun device: carried, it would loop."""
        lac = inet_ntoa(packet[16:20])
        self._log.warning_limited(
            "own_l2tp_dropped", lac=lac, why="the kernel routes the LAC's address into the tun device"
        )

    def _send_error(self, packet: bytes) -> bool:
        """Send an ICMP packet by a raw socket: from the tun device the kernel would drop a local source address."""
        assert self._errors is not None
        try:
            self._errors.sendto(packet, (inet_ntoa(packet[16:20]), 0))
        except OSError:
            return False
        return True

    # Sessions

    def endpoint(self, address: str) -> Endpoint:
        """Return the socket of this local address, for a tunnel that is restored. Raises OSError."""
        return self.lacs.endpoint(address)

    def dedicate(self, endpoint: Endpoint) -> Endpoint:
        """Return the socket that a tunnel at this local address uses from now on. Does not yield."""
        return self.lacs.dedicate(endpoint)

    def serve(self, prefixes: Iterable[IPv4Network]) -> None:
        """Route the pool's prefixes to the tun device. Sessions with addresses of a former prefix get host routes."""
        routes = self._routes
        if routes is None:
            return
        gone = routes.take_pool(prefixes)
        if gone:
            self._add_host_routes(routes)
            routes.remove(gone)

    def _add_host_routes(self, routes: Routes) -> None:
        """Add a host route for each session whose address the pool's routes do not cover any more."""
        for path in self.lacs.paths.values():
            if path.online and not routes.covers(address := IPv4Address(path.address)):
                single = IPv4Network(address)
                installed = self._installed.get(path.key, ())
                if single not in installed:
                    self._installed[path.key] = (single, *installed)
                    routes.add((single,))

    def avoid(self, needed: Mapping[IPv4Network, str], connected: Collection[IPv4Network]) -> None:
        if self._routes is not None and self._routes.avoid(needed, connected):
            self._add_host_routes(self._routes)

    def leads_into_tun(self, address: IPv4Address) -> bool:
        routes = self._routes
        if routes is None or (not routes.covers(address) and self.subscriber_at(address) is None):
            return False
        if self._netlink is None or self._tun is None:
            return True
        return self._netlink.device_to(address) == self._tun.index  # the operator may have a more specific route

    def subscriber_at(self, address: IPv4Address) -> SessionPath | None:
        table, packed = self._forwarder.table, address.packed
        return table.addresses.get(packed) or table.by_route(packed)

    def attach(self, path: SessionPath) -> None:
        self.lacs.paths[path.key] = path

    def detach(self, path: SessionPath) -> None:
        self.offline(path)
        if self.lacs.paths.get(path.key) is path:
            del self.lacs.paths[path.key]

    def online(self, path: SessionPath, address: IPv4Address, routes: Iterable[IPv4Network], mru: int) -> None:
        """Carry IP packets. A path that is online already gets the new address, routes and MRU."""
        self.offline(path)
        path.address = address.packed
        path.routes = tuple(routes)
        path.networks = tuple((int(route.netmask), int(route.network_address)) for route in path.routes)
        path.mru = max(min(mru, self.config.mru), MIN_MTU)
        # What the subscriber sends in full must not need fragments: user space would have to carry it.
        path.mss = mss_for(min(path.mru, self.config.l2tp_mtu - L2TP_OVERHEAD - path.extra))
        path.changed()
        path.online = True
        self._forwarder.table.add(path, path.address, path.routes)
        if self._routes is not None:
            single = () if self._routes.covers(address) else (IPv4Network(address),)
            self._installed[path.key] = wanted = (*single, *path.routes)
            self._routes.add(wanted)

    def offline(self, path: SessionPath) -> None:
        """Carry no more IP packets; senders to the address get ICMP `host unreachable`."""
        if not path.online:
            return
        path.online = False
        self._forwarder.table.remove(path, path.address, path.routes)
        installed = self._installed.pop(path.key, ())
        if self._routes is not None:
            self._routes.remove(installed)

    def changed(self, path: SessionPath) -> None:
        path.changed()

    def refresh(self, path: SessionPath) -> None:
        """Do nothing: the counters are kept in the path itself."""

    def counted(self, path: SessionPath) -> FastCounts:
        return FastCounts()

    def go_on(self, path: SessionPath, counted: FastCounts) -> None:
        """Do nothing: this process carries every packet."""

    def carrier(self, path: SessionPath) -> str:
        return "user space"

    def collect(self) -> None:
        """Do nothing: the counters are those of the process."""

    def retreat(self) -> None:
        """Do nothing: this process carries every packet."""

    def fast_path(self) -> FastPathStatus:
        return FastPathStatus(False, "this data path has none", (), {}, 0, {})

    def send_frame(self, path: SessionPath, protocol: int, information: bytes, *, checksum: bool = True) -> None:
        send = path.endpoint.send if checksum else path.endpoint.send_data
        send(path.frame(protocol, information), path.peer)


def _error_socket() -> RawSocket:
    """Return a raw socket for ICMP packets that have their own IP header; IPPROTO_RAW never receives."""
    try:
        sock = RawSocket(AF_INET, SOCK_RAW, IPPROTO_RAW)
    except OSError as error:
        why = f"cannot open a raw socket: {error.strerror}; CAP_NET_RAW is needed"
        raise refused(error.errno, why) from None
    sock.setblocking(False)
    return sock
