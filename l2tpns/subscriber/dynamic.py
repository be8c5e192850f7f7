"""What dynamic authorization does with sessions: find them, end them, change them (RFC 5176 2, 3).

A change is read and checked as a whole before anything happens, for all sessions that match: then all of them have it,
or none. What a request does not mention stays as it is, what it mentions replaces all old values of that attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import gevent

from l2tpns import causes
from l2tpns.errors import WireError
from l2tpns.policy import filters
from l2tpns.policy.model import PolicyError
from l2tpns.radius import rates
from l2tpns.radius.attribute_values import CISCO_DNS, Values, avpair_key, text
from l2tpns.radius.attributes import BY_KEY, BY_NAME, VENDOR_SPECIFIC, Key, label
from l2tpns.radius.dynamic_packet import (
    ERROR_CAUSE,
    EVENT_TIMESTAMP,
    PROXY_STATE,
    STATE,
    DynamicRequest,
    ErrorCause,
    Refused,
)
from l2tpns.radius.framing import MESSAGE_AUTHENTICATOR
from l2tpns.subscriber import accounting, plugin_hooks, timers
from l2tpns.subscriber.plugin_hooks import SECRET_AVPAIRS
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.session import Session

RELEASE_TIMEOUT = 20.0  # seconds for a session to be released before a Disconnect gets a NAK
FRAMED, AUTHORIZE_ONLY = 2, 17  # Service-Type
YES, NO = ("yes", "on", "true"), ("no", "off", "false", "0")


def key_of(name: str) -> Key:
    return BY_NAME[name].key


USER, ADDRESS, PORT = key_of("User-Name"), key_of("Framed-IP-Address"), key_of("NAS-Port")
CALLED, CALLING = key_of("Called-Station-Id"), key_of("Calling-Station-Id")
ACCT_SESSION_ID, PORT_ID = key_of("Acct-Session-Id"), key_of("NAS-Port-Id")
IDENTIFICATION = (USER, ADDRESS, PORT, CALLED, CALLING, ACCT_SESSION_ID, PORT_ID)
NAS_ADDRESS, NAS_IDENTIFIER = key_of("NAS-IP-Address"), key_of("NAS-Identifier")
NAS_IPV6_ADDRESS, SERVICE_TYPE, AVPAIR = key_of("NAS-IPv6-Address"), key_of("Service-Type"), key_of("Cisco-AVPair")
NAS = (NAS_ADDRESS, NAS_IDENTIFIER, NAS_IPV6_ADDRESS)
SIGNALLING = (PROXY_STATE, STATE, MESSAGE_AUTHENTICATOR, EVENT_TIMESTAMP, SERVICE_TYPE, key_of("Reply-Message"), *NAS)
# In a Disconnect-Request these may stand beside the identification (RFC 5176 3.6).
BESIDE_A_DISCONNECT = (key_of("Class"), key_of("Acct-Terminate-Cause"))
PROFILE_FIELDS = ("session_timeout", "idle_timeout", "interim", "classes", "dns")  # of AuthReply
CHANGEABLE = (*PROFILE_FIELDS, "filter_ids", "rates", "avpairs")


@dataclass(slots=True)
class Change:
    """What a request changes. None, or not there: it stays as it is."""

    profile: dict[str, Any] = field(default_factory=dict)  # fields of AuthReply
    filter_ids: tuple[str, ...] | None = None
    rate_in: int | None = None  # kbit/s, 0: no limit
    rate_out: int | None = None
    garden: str | None = None  # "": none
    for_plugins: list[tuple[str, str]] = field(default_factory=list)  # AVPairs

    @property
    def facts(self) -> dict[str, Any]:
        """Return what is changed, for the log."""
        found: dict[str, Any] = {name: value for name, value in self.profile.items() if name != "dns"}
        if "classes" in found:
            found["classes"] = len(found["classes"])
        if "dns" in self.profile:
            found["dns"] = list(map(str, self.profile["dns"]))
        for name in ("filter_ids", "rate_in", "rate_out", "garden"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.for_plugins:
            found["avpairs"] = sorted({key for key, _ in self.for_plugins})
        return found


class DynamicAuthority:
    """Carries out the requests of one server. Methods may yield and raise Refused."""

    def __init__(self, services: Services, sessions: Mapping[int, Session]) -> None:
        self._services = services
        self._sessions = sessions

    def disconnect(self, request: DynamicRequest) -> list[Session]:
        """End the sessions that a Disconnect-Request names, and return them when they are gone."""
        self._check_target(request)
        for key in request.packet.attributes:
            if key not in (*IDENTIFICATION, *SIGNALLING, *BESIDE_A_DISCONNECT):
                raise Refused(ErrorCause.UNSUPPORTED_ATTRIBUTE, f"{label(key)} in a Disconnect-Request")
        found = self._select(request, lambda session: session.alive)
        for session in found:
            session.end_awaited(causes.RADIUS_DISCONNECT)
        gevent.joinall([session.greenlet for session in found], timeout=RELEASE_TIMEOUT)
        if any(session.alive for session in found):
            raise Refused(ErrorCause.NOT_REMOVABLE, f"a session was not released within {RELEASE_TIMEOUT:.0f} s")
        return found

    def change(self, request: DynamicRequest, client: str) -> tuple[list[Session], dict[str, Any]]:
        """Change the sessions that a CoA-Request names. Return them and what was changed."""
        self._check_target(request)
        change = self._read_change(request)
        found = self._select(request, lambda session: session.is_online)
        self._build_garden(change)
        self._set_rates(found, change, f"RADIUS {client}")
        for session in found:
            if session.is_online:  # else it has ended while another session got its rates
                self._apply(session, change, f"RADIUS {client}")
        return found, change.facts

    # Which sessions

    def _check_target(self, request: DynamicRequest) -> None:
        """Refuse a request for another server or another service."""
        config, own = self._services.config, self._services.guard.routable.surroundings.own
        for value in request.values(NAS_ADDRESS):
            address = IPv4Address(value) if len(value) == 4 else None
            if address is None or (address != config.main_address and IPv4Network(address) not in own):
                raise Refused(ErrorCause.NAS_MISMATCH, f"NAS-IP-Address {address or value.hex()} is not ours")
        for value in request.values(NAS_IDENTIFIER):
            if text(value) != config.hostname:
                raise Refused(ErrorCause.NAS_MISMATCH, f"NAS-Identifier {text(value)[:80]} is not ours")
        if request.values(NAS_IPV6_ADDRESS):
            raise Refused(ErrorCause.NAS_MISMATCH, "this server has no NAS-IPv6-Address")
        for value in request.values(SERVICE_TYPE):
            if int.from_bytes(value, "big") != FRAMED:
                what = "Authorize-Only" if value[-1:] == bytes([AUTHORIZE_ONLY]) else value.hex()
                raise Refused(ErrorCause.UNSUPPORTED_SERVICE, f"Service-Type {what}")

    def _select(self, request: DynamicRequest, wanted: Callable[[Session], bool]) -> list[Session]:
        """Return the sessions that all identification attributes name, at least one."""
        given = {key: request.values(key) for key in IDENTIFICATION if request.values(key)}
        if not given:
            raise Refused(ErrorCause.MISSING_ATTRIBUTE, "no attribute names a session")
        for key, values in given.items():
            if len(set(values)) > 1 or (key in (ADDRESS, PORT) and len(values[0]) != 4):
                raise Refused(ErrorCause.INVALID_REQUEST, f"{label(key)} is malformed or names several sessions")
        named = {key: values[0] for key, values in given.items()}
        found = [session for session in self._candidates(named) if wanted(session) and self._fits(session, named)]
        if not found:
            names = ", ".join(f"{label(key)} {self._shown(key, value)}" for key, value in named.items())
            raise Refused(ErrorCause.NO_SESSION, f"no session has {names}")
        return found

    def _candidates(self, named: Mapping[Key, bytes]) -> Iterable[Session]:
        """Return sessions among which those that are named are, as few as an index gives."""
        registry = self._services.registry
        if PORT in named:
            session = self._sessions.get(int.from_bytes(named[PORT], "big"))
            return [session] if session is not None else []
        if PORT_ID in named:
            number = text(named[PORT_ID]).rpartition("/")[2]
            session = self._sessions.get(int(number)) if number.isascii() and number.isdecimal() else None
            return [session] if session is not None else []
        if ADDRESS in named:
            session = registry.by_address.get(IPv4Address(named[ADDRESS]))
            return [session] if session is not None else []
        # A name that is not in the index may be one that RADIUS has given for accounting (RFC 2865 5.1).
        by_name = registry.sessions_of(text(named[USER])) if USER in named else ()
        return by_name or list(self._sessions.values())

    def _fits(self, session: Session, named: Mapping[Key, bytes]) -> bool:
        """Return whether a session is the one that every attribute names (RFC 5176 3)."""
        same_user = self._services.registry.same_user
        for key, value in named.items():
            word = text(value)
            if key == PORT:
                fits = session.id == int.from_bytes(value, "big")
            elif key == ADDRESS:
                fits = session.address is not None and session.address.packed == value
            elif key == USER:
                fits = same_user(session.user, word) or accounting.account_name(session) == value
            elif key == ACCT_SESSION_ID:
                fits = session.acct_session_id == word
            elif key == PORT_ID:
                fits = word == f"{session.tunnel.id}/{session.id}"
            else:
                fits = word == (session.called if key == CALLED else session.calling)
            if not fits:
                return False
        return True

    @staticmethod
    def _shown(key: Key, value: bytes) -> str:
        if key == ADDRESS:
            return str(IPv4Address(value))
        return str(int.from_bytes(value, "big")) if key == PORT else text(value)[:80]

    # Which change

    def _read_change(self, request: DynamicRequest) -> Change:
        """Return the change that a CoA-Request asks for, every part of which is possible now."""
        change = Change()
        offers: list[Any] = []
        for key in request.packet.attributes:
            if key in (*IDENTIFICATION, *SIGNALLING):
                continue
            attribute = BY_KEY.get(key)
            if key in (VENDOR_SPECIFIC, ERROR_CAUSE) or attribute is None or not attribute.parse:
                raise Refused(ErrorCause.UNSUPPORTED_ATTRIBUTE, f"{label(key)} cannot be changed")
            if not set(attribute.fills) <= set(CHANGEABLE):
                raise Refused(ErrorCause.UNSUPPORTED_ATTRIBUTE, f"{label(key)} cannot be changed while a session lives")
            try:
                parsed = attribute.parse(Values(attribute.name, request.values(key), self._services.log))
            except WireError as error:
                raise Refused(ErrorCause.INVALID_REQUEST, str(error)) from None
            if parsed is None:
                raise Refused(ErrorCause.INVALID_VALUE, f"{label(key)} has a value that cannot be used")
            if key == AVPAIR:
                pairs, servers, limits = parsed
                self._read_avpairs(pairs, change)
                offers += limits
                if servers:
                    change.profile["dns"] = servers
            elif attribute.fills == ("rates",):
                offers += parsed
            elif attribute.fills == ("filter_ids",):
                change.filter_ids = self._known_filters(parsed)
            elif attribute.fills == ("dns",):
                change.profile["dns"] = tuple(dict.fromkeys((*change.profile.get("dns", ()), *parsed)))
            else:
                change.profile[attribute.fills[0]] = parsed
        rate_in, rate_out = rates.chosen(offers)
        change.rate_in = rate_in if change.rate_in is None else change.rate_in
        change.rate_out = rate_out if change.rate_out is None else change.rate_out
        if not change.facts:
            raise Refused(ErrorCause.MISSING_ATTRIBUTE, "nothing is to be changed")
        return change

    def _known_filters(self, filter_ids: tuple[str, ...]) -> tuple[str, ...]:
        for filter_id in filter_ids:
            name, _, direction = filter_id.rpartition(".")
            if direction not in ("in", "out") or name not in self._services.config.filters:
                raise Refused(ErrorCause.INVALID_VALUE, f"Filter-Id {filter_id[:80]} is no NAME.in or NAME.out of ours")
        return filter_ids

    def _read_avpairs(self, pairs: Iterable[tuple[str, str]], change: Change) -> None:
        """Read the AVPairs that the shipped plugins read in an Access-Accept, and those of other plugins."""
        for key, value in pairs:
            name, word = avpair_key(key), value.strip().lower()
            if name == "throttle":
                change.rate_in = change.rate_out = self._rate(word)
            elif name == "garden":
                change.garden = "" if word in NO else "garden" if word in YES else value.strip()
            elif name == rates.INTERFACE_CONFIG and word.startswith("service-policy"):
                way, _, rate = word.removeprefix("service-policy").strip().partition(" ")
                if way not in ("input", "output"):
                    raise Refused(ErrorCause.INVALID_VALUE, f"{key}: service-policy takes input or output, then a rate")
                setattr(change, "rate_in" if way == "input" else "rate_out", self._rate(rate.strip()))
            elif name == rates.INTERFACE_CONFIG and rates.cisco_rate_limits([(key, value)]):
                continue  # read by the parser of the attribute
            elif name in SECRET_AVPAIRS:
                raise Refused(ErrorCause.PROHIBITED, "interception cannot be changed by RADIUS while a session lives")
            elif self._services.hooks.reads_avpair(name):
                change.for_plugins.append((key, value))
            elif name != CISCO_DNS:
                raise Refused(ErrorCause.UNSUPPORTED_ATTRIBUTE, f"AVPair {key[:80]}: nothing reads it")

    def _rate(self, word: str) -> int:
        """Return a rate in kbit/s, as in `throttle=`."""
        try:
            if word in YES:
                return self._services.throttle.default()
        except PolicyError as error:
            raise Refused(ErrorCause.INVALID_VALUE, f"throttle={word}: {error}") from None
        if word in NO:
            return 0
        if word.isascii() and word.isdecimal() and 0 < int(word[:9]) <= rates.MAX_RATE and len(word) < 9:
            return int(word)
        raise Refused(ErrorCause.INVALID_VALUE, f"{word[:40]!r} is not a rate in kbit/s")

    # Doing it

    def _build_garden(self, change: Change) -> None:
        """Build the garden that sessions are to enter, before any of them is changed."""
        if change.garden:
            try:
                self._services.gardens.build(change.garden)
            except PolicyError as error:
                raise Refused(ErrorCause.INVALID_VALUE, str(error)) from None

    def _set_rates(self, sessions: list[Session], change: Change, by: str) -> None:
        """Set the rates of all sessions. If one cannot have them, all have their old ones again."""
        if change.rate_in is None and change.rate_out is None:
            return
        throttle, done = self._services.throttle, list[tuple[Session, int, int]]()
        try:
            for session in sessions:
                before = session.policy
                throttle.set(session, change.rate_in, change.rate_out, by=by)
                done.append((session, before.rate_in, before.rate_out))
        except PolicyError as error:
            for session, rate_in, rate_out in done:
                throttle.set(session, rate_in, rate_out, by=f"{by}, undone")
            raise Refused(ErrorCause.RESOURCES, f"session {session.id}: {error}") from None

    def _apply(self, session: Session, change: Change, by: str) -> None:
        """Change what cannot fail, and the garden, which exists."""
        services = self._services
        if change.filter_ids is not None:
            filters.apply_filter_ids(services.plane, services.config.filters, session, change.filter_ids)
        if change.profile and session.profile is not None:
            now = services.session_timing.clock()
            session.profile = replace(session.profile, **change.profile)
            if "session_timeout" in change.profile:
                session.timeout_started_at = now
            if "interim" in change.profile:
                timers.schedule_interim(session, now)
            timers.set_timer(session, now)
        services.changes.session(session)
        plugin_hooks.radius_change(session, by, change.for_plugins, tuple(change.facts))
        if change.garden is not None and change.garden != session.policy.garden and session.is_online:
            try:
                if change.garden:
                    services.gardens.enter(session, change.garden, by=by)
                else:
                    services.gardens.leave(session, by=by)
            except PolicyError as error:  # it has been moved by another command meanwhile, or has ended
                session.log.warning("garden_failed", garden=change.garden, why=str(error))
