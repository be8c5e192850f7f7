"""Authentication: from a subscriber's credentials to a verdict (RFC 2865 sections 4.1 to 4.4, RFC 2869).

Access-Challenge is not supported and counts as a refusal (4.4). Sockets and tries are in transport.py.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from ipaddress import AddressValueError, IPv4Address

from pyrad.packet import Packet

from l2tpns.errors import NoAnswer, WireError
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius import ignored, packets, service
from l2tpns.radius.framed_route import parse_framed_route
from l2tpns.radius.transport import Transport
from l2tpns.radius.types import Assign, AuthReply, AuthRequest, FramedRoute, RadiusSettings
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.log import Logger
from l2tpns.runtime.repeat_filter import RepeatFilter
from l2tpns.runtime.supervisor import Supervisor

MAX_PASSWORD = 128  # RFC 2865 5.2
CHAP_RESPONSE = 16  # MD5
IGNORED_INTERVAL = 3600.0  # seconds between two lines of the log about an attribute that is not supported
MIN_INTERIM = 60  # RFC 2869 5.16
MTUS = range(64, 65536)  # RFC 2865 5.12
NO_SERVICE = b"service unavailable"  # what the subscriber reads; an Accept's own message would be a greeting
USER_CHOOSES = IPv4Address("255.255.255.255")  # RFC 2865 5.8
NAS_CHOOSES = IPv4Address("255.255.255.254")
UNNAMED = IPv4Address(0)  # some servers send it where the RFC has 255.255.255.254

CISCO_AVPAIR = (9, 1)
CISCO_DNS = "ip:dns-servers"
OWN_AVPAIRS = (CISCO_DNS,)  # keys that the server itself reads; all others are for plugins
# Primary servers first; a server speaks one of these dialects, or the AVPair above, which comes after them.
DNS_ATTRIBUTES = (
    (529, 135), (529, 136),  # Ascend-Client-Primary-DNS, -Secondary-
    135, 136,  # the same without a vendor
    (311, 28), (311, 29),  # MS-Primary-DNS-Server, -Secondary- (RFC 2548 2.7.1)
)  # fmt: skip
VENDORS = (9, 311, 529)
OPTIONAL = re.compile(r"^(\s*[\w-]+:[\w#-]+)\*", re.ASCII)


class RadiusBackend:
    """Asks the RADIUS servers; one for the whole daemon, used by every session's greenlet."""

    def __init__(
        self,
        settings: RadiusSettings,
        log: Logger,
        *,
        random: Callable[[int], bytes] = os.urandom,
        supervisor: Supervisor | None = None,
        awake: AwakeClock | None = None,
    ) -> None:
        self._log = log
        self._dictionary = packets.load_dictionary()
        self._random = random
        self._ignored = RepeatFilter(IGNORED_INTERVAL)
        self.transport = Transport(settings, self._dictionary, log, random=random, awake=awake, supervisor=supervisor)

    def configure(self, settings: RadiusSettings) -> None:
        self.transport.configure(settings)

    def close(self) -> None:
        self.transport.close()

    def authenticate(self, request: AuthRequest) -> AuthReply:
        settings = self.transport.settings
        if not settings.secret:
            raise NoAnswer("radius_secret is not set: no request is sent")
        credentials = request.credentials
        why = unaskable(request)
        if why:
            return AuthReply(accepted=False, why=why)

        def encode(identifier: int, local: IPv4Address) -> tuple[Packet, bytes]:
            packet = packets.new_access_request(identifier, settings.secret, self._random(16), self._dictionary)
            fill_access_request(packet, request, settings, local)
            return packet, packet.RequestPacket()

        label = "CHAP" if credentials.protocol == Protocol.CHAP else "PAP"
        reply = self.transport.request(encode, label=label, session_id=request.session_id)
        if reply.code not in (packets.ACCESS_ACCEPT, packets.ACCESS_REJECT, packets.ACCESS_CHALLENGE):
            self._log.error("radius_reply_unknown", user=credentials.user, code=reply.code)
            return AuthReply(accepted=False, why="the RADIUS server's answer is unknown")
        try:
            verdict = parse_reply(reply, self._log)
        except WireError as error:
            # RFC 2865 5: an attribute of the wrong length makes an Accept a Reject, or nothing. The server would
            # send the same again, so the subscriber is told now.
            self._log.error("radius_reply_invalid", user=credentials.user, session=request.session_id, why=str(error))
            return AuthReply(accepted=False, why="the RADIUS server's answer is invalid")
        if reply.code == packets.ACCESS_ACCEPT and not verdict.accepted:
            self._log.provoked(
                "radius_service_refused", user=credentials.user, session=request.session_id, why=verdict.why
            )
        if verdict.accepted:
            self._name_ignored(reply, credentials.user)
        return verdict

    def _name_ignored(self, reply: Packet, user: str) -> None:
        """Log attributes that nothing here reads, each once in a while, without their values, which may be keys."""
        for attribute in ignored.attributes(reply):
            if self._ignored.due(attribute, time.monotonic()):
                self._log.info("radius_attribute_ignored", attribute=attribute, user=user, why="it is not supported")


def unaskable(request: AuthRequest) -> str:
    """Why these credentials fit into no Access-Request; empty when they do."""
    credentials = request.credentials
    if not 1 <= len(credentials.name) <= packets.MAX_VALUE:
        return f"user name of {len(credentials.name)} octets"
    if credentials.protocol == Protocol.PAP:
        return f"password of {len(credentials.password)} octets" if len(credentials.password) > MAX_PASSWORD else ""
    if credentials.protocol == Protocol.CHAP:
        if len(credentials.response) != CHAP_RESPONSE or not 1 <= len(credentials.challenge) <= packets.MAX_VALUE:
            return "CHAP response or challenge of a wrong length"
        return ""
    return f"protocol {credentials.protocol:#06x}"


def fill_access_request(packet: Packet, request: AuthRequest, settings: RadiusSettings, local: IPv4Address) -> None:
    """The attributes of RFC 2865 section 5.44's first column that we know."""
    credentials = request.credentials
    packets.put_octets(packet, packets.USER_NAME, credentials.name)
    if credentials.protocol == Protocol.PAP:
        packets.put_octets(packet, packets.USER_PASSWORD, packet.PwCrypt(credentials.password))
    else:
        identifier = bytes([credentials.identifier & 0xFF])
        packets.put_octets(packet, packets.CHAP_PASSWORD, identifier + credentials.response)
        packets.put_octets(packet, packets.CHAP_CHALLENGE, credentials.challenge)
    packets.put_nas(packet, settings.nas_address or local, settings.nas_identifier)
    packets.put_call(packet, request)
    if request.mtu in MTUS:
        packet["Framed-MTU"] = request.mtu
    packets.put_octets(packet, packets.STATE, request.state)


# --- replies


def parse_reply(reply: Packet, log: Logger) -> AuthReply:
    """Return the verdict. Raises WireError when an attribute that we use has an impossible length.

    An Access-Accept for a service that is unavailable here is a refusal with the attributes of the Accept, as an
    Access-Reject is with its own.
    """
    why = service.unavailable(reply) if reply.code == packets.ACCESS_ACCEPT else ""
    assign, address = framed_address(reply, log)
    avpairs = tuple(pair for value in packets.values(reply, CISCO_AVPAIR) for pair in split_avpair(value, log))
    vendors_well_formed(reply, log)
    return AuthReply(
        accepted=reply.code == packets.ACCESS_ACCEPT and not why,
        message=NO_SERVICE if why else b"".join(packets.values(reply, packets.REPLY_MESSAGE)),
        assign=assign,
        address=address,
        routes=framed_routes(reply, log),
        dns=dns_servers(reply, avpairs, log),
        session_timeout=packets.integer(reply, packets.SESSION_TIMEOUT),
        idle_timeout=packets.integer(reply, packets.IDLE_TIMEOUT),
        interim=interim_interval(reply),
        classes=tuple(packets.values(reply, packets.CLASS)),
        avpairs=avpairs,
        filter_ids=tuple(packets.text(value) for value in packets.values(reply, packets.FILTER_ID)),
        termination_action=packets.integer(reply, packets.TERMINATION_ACTION) or 0,
        state=b"".join(packets.values(reply, packets.STATE)[:1]),
        framed_pool="".join(packets.text(value) for value in packets.values(reply, packets.FRAMED_POOL)[:1]),
        mtu=framed_mtu(reply, log),
        user=b"".join(packets.values(reply, packets.USER_NAME)[:1]),
        why=why,
    )


def framed_address(reply: Packet, log: Logger) -> tuple[Assign, IPv4Address | None]:
    """RFC 2865 5.8: two addresses are not addresses. 0.0.0.0 names none either: the pool has one."""
    address = next(packets.addresses(reply, packets.FRAMED_IP_ADDRESS), NAS_CHOOSES)
    if address == UNNAMED:
        log.debug("radius_value_ignored", attribute="Framed-IP-Address", value="0.0.0.0", why="it names no address")
        return Assign.POOL, None
    if address == NAS_CHOOSES:
        return Assign.POOL, None
    if address == USER_CHOOSES:
        return Assign.PEER, None
    if not is_host(address):
        raise WireError(f"Framed-IP-Address {address} is no subscriber's address")
    return Assign.FIXED, address


def is_host(address: IPv4Address) -> bool:
    """Return whether another host can have this address: 0/8, 127/8, 224/4 and 240/4 have none (RFC 6890)."""
    number = int(address)
    return number >> 24 not in (0, 127) and number >> 29 != 7


def interim_interval(reply: Packet) -> int | None:
    """Return Acct-Interim-Interval, at least a minute (RFC 2869 5.16). 0 says that this user has no interim records."""
    interval = packets.integer(reply, packets.ACCT_INTERIM_INTERVAL)
    return max(MIN_INTERIM, interval) if interval else interval


def framed_mtu(reply: Packet, log: Logger) -> int | None:
    """Return Framed-MTU if it is one of RFC 2865 5.12; of an MTU of 1 a subscriber would see no packet."""
    mtu = packets.integer(reply, packets.FRAMED_MTU)
    if mtu is None or mtu in MTUS:
        return mtu
    log.provoked("radius_value_ignored", attribute="Framed-MTU", value=mtu, why="it must be from 64 to 65535")
    return None


def framed_routes(reply: Packet, log: Logger) -> tuple[FramedRoute, ...]:
    """Those that can be read and that our policy lets through; the others cost a log line, not the login."""
    routes: dict[FramedRoute, None] = {}
    for value in packets.values(reply, packets.FRAMED_ROUTE):
        try:
            routes[parse_framed_route(value)] = None
        except ValueError as error:
            log.warning("framed_route_refused", route=packets.text(value), why=str(error))
    return tuple(routes)


def avpair_key(key: str) -> str:
    """Return the key of an AVPair without the number that distinguishes several of one kind."""
    return key.lower().partition("#")[0]


def dns_servers(reply: Packet, avpairs: tuple[tuple[str, str], ...], log: Logger) -> tuple[IPv4Address, ...]:
    """In the order of DNS_ATTRIBUTES, then of AVPairs; each once, without 0.0.0.0, which names none, and without what
    is no host's."""
    found = dict.fromkeys(address for key in DNS_ATTRIBUTES for address in packets.addresses(reply, key))
    for key, value in avpairs:
        if avpair_key(key) == CISCO_DNS:
            found.update(dict.fromkeys(cisco_addresses(value, log)))
    servers = tuple(address for address in found if is_host(address))
    for address in found:
        if address not in servers and address != UNNAMED:
            log.provoked("radius_value_ignored", attribute="DNS server", value=str(address), why="no host has it")
    return servers


def cisco_addresses(value: str, log: Logger) -> Iterator[IPv4Address]:
    """Yield the addresses of `ip:dns-servers=192.0.2.1 192.0.2.2`; what is not an address costs a log line."""
    for word in value.replace(",", " ").split():
        try:
            yield IPv4Address(word)
        except AddressValueError:
            log.provoked("radius_value_ignored", attribute=CISCO_DNS, value=word[:80], why="not an IPv4 address")


def split_avpair(value: bytes, log: Logger) -> list[tuple[str, str]]:
    """`key=value,key2=value2` (manual, Authentication).

    A comma may also stand within a value: what follows it is the next pair only if it begins with a word and `=`. And
    Cisco's own attributes (`lcp:interface-config=rate-limit a=b,c=d`) are not lists: the value of one whose key has a
    colon goes on to the next key with a colon. One that is optional to Cisco's servers has `*` for `=`.
    """
    pairs: list[tuple[str, str]] = []
    for piece in packets.text(value).split(","):
        key, equals, rest = OPTIONAL.sub(r"\1=", piece, count=1).partition("=")
        key = key.strip()
        within = pairs and (" " in key or (":" in pairs[-1][0] and ":" not in key))
        if equals and key and not within:
            pairs.append((key, rest.strip()))
        elif pairs:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{piece}")
        elif piece.strip():
            log.provoked("avpair_without_key", octets=len(piece))  # it may be meant to say who is intercepted
    return pairs


def vendors_well_formed(reply: Packet, log: Logger) -> None:
    """RFC 2865 5.26: sub-attributes that do not add up are left out; of a vendor that we read this is worth a word."""
    for value in packets.values(reply, packets.VENDOR_SPECIFIC):
        if len(value) < 4 or int.from_bytes(value[:4], "big") in VENDORS:
            log.warning("vendor_attribute_malformed", octets=len(value))
