"""The network layer of a session: IPCP and the subscriber's address (RFC 1332 3, RFC 2865 5.8).

`Ipv4` is the only network layer so far. Session treats all layers of a link alike.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address
from typing import ClassVar

from l2tpns import causes
from l2tpns.causes import Cause, SessionEnded
from l2tpns.errors import NoAddress
from l2tpns.policy.model import Subscriber
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.ipcp import Ipcp, IpcpPolicy, IpcpRecord
from l2tpns.radius.attribute_values import CISCO_POOL, avpair_key
from l2tpns.radius.types import Assign, AuthReply
from l2tpns.subscriber.layers import NetworkLayer
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.pools import UNNAMED
from l2tpns.subscriber.state import SessionState


class Ipv4:
    """IPv4, negotiated by IPCP; a NetworkLayer."""

    __slots__ = ("_ipcp", "_session")

    protocol: ClassVar[int] = Protocol.IPCP
    name: ClassVar[str] = "IPCP"

    def __init__(self, session: SessionState, profile: AuthReply, address: IPv4Address | None) -> None:
        """Offer `address` to the subscriber. With Assign.PEER it is None, and the subscriber chooses its address."""
        link, config = session.link, session.tunnel.config
        peer_chooses = profile.assign is Assign.PEER
        policy = IpcpPolicy(
            local=config.ppp_local_address,
            peer=None if peer_chooses else address,
            dns=profile.dns or config.dns,
            peer_may_choose=peer_chooses,
        )
        send = partial(link.send_frame, Protocol.IPCP)
        self._session = session
        self._ipcp = Ipcp(send, link.on_network, session.services.random, link.timers(), policy)
        self._ipcp.peer_mru = link.lcp.peer_mru

    @property
    def state(self) -> str:
        return self._ipcp.state.name.title()

    @property
    def opened(self) -> bool:
        return self._ipcp.opened

    @property
    def ready(self) -> bool:
        return self._ipcp.opened and self._ipcp.peer_address == self._session.address

    @property
    def peer_address(self) -> IPv4Address | None:
        return self._ipcp.peer_address

    @property
    def deadline(self) -> float | None:
        return self._ipcp.deadline

    def open(self, now: float) -> None:
        self._ipcp.open(now)
        self._ipcp.lower_up(now)

    def receive(self, packet: bytes, now: float) -> None:
        self._ipcp.receive(packet, now)

    def timeout(self, now: float) -> None:
        self._ipcp.timeout(now)

    def ask_again(self) -> None:
        self._ipcp.ask_again()

    def failure(self) -> SessionEnded | None:
        impasse = self._ipcp.impasse
        if impasse is None:
            return None
        reason = causes.NO_COMMON_ADDRESS if self._ipcp.address_disputed else causes.NCP_FAILED
        return SessionEnded(reason, text=impasse.words("the subscriber"))

    def disagreement(self) -> SessionEnded | None:
        if self.peer_address == self._session.address:
            return None
        text = f"the subscriber requested {self.peer_address} instead of {self._session.address}"
        return SessionEnded(causes.NO_COMMON_ADDRESS, text=text)

    def refusals(self) -> list[str]:
        return self._ipcp.refusals()

    def record(self) -> IpcpRecord:
        return self._ipcp.record()

    def restore(self, record: IpcpRecord) -> None:
        self._ipcp.restore(record)


def open_networks(session: SessionState) -> None:
    """Negotiate each network layer, with an address of RADIUS or of the pool. May yield. Raises SessionEnded."""
    link, profile = session.link, session.profile
    assert profile is not None
    link.phase = Phase.NETWORK
    peer_chooses = profile.assign is Assign.PEER
    if not peer_chooses:
        choose_address(session, profile)
    ipv4 = Ipv4(session, profile, session.address)
    layers: tuple[NetworkLayer, ...] = (ipv4,)
    link.layers = {layer.protocol: layer for layer in layers}
    for layer in layers:
        layer.open(link.now())
    link.wait(lambda: all(layer.opened for layer in layers))
    for layer in layers:
        link.log_refused(layer.name, layer.refusals())
    if peer_chooses:
        chosen = ipv4.peer_address
        assert chosen is not None  # without one IPCP does not open
        take_address(session, chosen)


def choose_address(session: SessionState, profile: AuthReply) -> None:
    """Assign the address that RADIUS chose, or one of the pool. May yield. Raises SessionEnded."""
    registry = session.services.registry
    if profile.address is not None and not (session.policy.garden and registry.holders(profile.address, session)):
        end_older(session, registry.holders(profile.address, session), causes.DUPLICATE_ADDRESS)
        take_address(session, profile.address)
        return
    try:
        session.address = registry.allocate(session, pool := pool_of(session, profile))
    except NoAddress as error:
        session.services.counters.no_address += 1
        session.log.error("pool_empty", user=session.user, pool=pool)
        raise SessionEnded(causes.NO_ADDRESS) from error


def pool_of(session: SessionState, profile: AuthReply) -> str:
    """Return the name of the pool for a session: that of RADIUS, else of the LAC's profile or of the server."""
    by_pair = next((value for key, value in profile.avpairs if avpair_key(key) == CISCO_POOL), "")
    name = profile.framed_pool or by_pair or session.tunnel.config.ip_pool
    if session.services.pool.pool(name) is None:
        session.log.warning_limited("framed_pool_unknown", pool=name, why="l2tpns.ip_pool has no such pool")
        return UNNAMED
    return name


def take_address(session: SessionState, address: IPv4Address) -> None:
    """Assign this address to the session. Raises SessionEnded if it is unavailable."""
    why = session.services.registry.take_address(address, session)
    if why:
        session.log.warning_limited("address_refused", user=session.user, address=str(address), why=why)
        raise SessionEnded(causes.ADDRESS_IN_USE, text=f"address {address} is not available")
    session.address = address


def end_older(session: SessionState, older: list[Subscriber], reason: Cause) -> None:
    """End older sessions of the same user or address, and wait for their release. May yield."""
    services = session.services
    services.counters.sessions_replaced += len(older)
    for other in older:
        other.end_awaited(reason)
    services.awake.join([other.greenlet for other in older], services.session_timing.release_timeout)
