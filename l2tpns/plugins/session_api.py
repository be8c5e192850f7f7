"""A session as one plugin sees it and may change it (manual: Plugins).

A view is valid while the session exists (`alive`). After that, methods raise PluginError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import AddressValueError, IPv4Address, IPv4Network

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.errors import PluginError
from l2tpns.policy.model import PolicyError, Sink
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.session import Session as CoreSession

MAX_REASON = 200  # characters


class Session:
    """One session, as one plugin may use it."""

    __slots__ = ("_by", "_session")

    def __init__(self, session: CoreSession, by: str) -> None:
        self._session = session
        self._by = by

    def __repr__(self) -> str:
        return f"<session {self.id} of {self.user!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Session) and other._session is self._session

    def __hash__(self) -> int:
        return hash(self._session)

    # Properties

    @property
    def id(self) -> int:
        """Id that the server assigned."""
        return self._session.id

    @property
    def tunnel(self) -> int:
        """Id of its tunnel, assigned by the server."""
        return self._session.tunnel.id

    @property
    def lac(self) -> str:
        """Address of the LAC."""
        return self._session.tunnel.peer[0]

    @property
    def lac_name(self) -> str:
        """Host name of the LAC."""
        return self._session.tunnel.host

    @property
    def user(self) -> str:
        """User name of the subscriber, empty before authentication."""
        return self._session.user

    @property
    def calling(self) -> str:
        """Calling number."""
        return self._session.calling

    @property
    def called(self) -> str:
        """Called number."""
        return self._session.called

    @property
    def address(self) -> IPv4Address | None:
        """Address of the subscriber, None before one is assigned."""
        return self._session.address

    @property
    def routes(self) -> tuple[IPv4Network, ...]:
        """Framed routes."""
        profile = self._session.profile
        return tuple(route.prefix for route in profile.routes) if profile is not None else ()

    @property
    def acct_session_id(self) -> str:
        """Acct-Session-Id."""
        return self._session.acct_session_id

    @property
    def alive(self) -> bool:
        """False after the session has ended."""
        return self._session.alive

    @property
    def online(self) -> bool:
        """Whether the session is online."""
        return bool(self._session.online_since)

    @property
    def opened(self) -> float:
        """Unix time when the session came online, 0.0 before."""
        return self._session.opened_wall

    @property
    def rx_speed(self) -> int:
        """Speed from the subscriber in bit/s, as the LAC reported or a plugin set it, 0: unknown. May be set."""
        return self._session.rx_speed

    @rx_speed.setter
    def rx_speed(self, speed: int) -> None:
        self._living().rx_speed = _speed(speed)

    @property
    def tx_speed(self) -> int:
        """Speed to the subscriber in bit/s. May be set."""
        return self._session.tx_speed

    @tx_speed.setter
    def tx_speed(self, speed: int) -> None:
        self._living().tx_speed = _speed(speed)

    @property
    def traffic(self) -> tuple[int, int, int, int]:
        """Octets and packets from the subscriber, octets and packets to the subscriber."""
        session = self._session
        session.services.plane.refresh(session.path)
        path = session.path
        return path.in_octets, path.in_packets, path.out_octets, path.out_packets

    # Policy

    @property
    def rate_in(self) -> int:
        """Rate limit from the subscriber in kbit/s, 0: not throttled."""
        return self._session.policy.rate_in

    @property
    def rate_out(self) -> int:
        """Rate limit to the subscriber in kbit/s, 0: not throttled."""
        return self._session.policy.rate_out

    @property
    def garden(self) -> str:
        """Name of its walled garden, empty: none."""
        return self._session.policy.garden

    @property
    def sink(self) -> tuple[IPv4Address, int] | None:
        """Address and port that get copies of its packets, None: not intercepted."""
        sink = self._session.services.snoop.where(self._session.policy.sink)
        return None if sink is None else (sink.address, sink.port)

    def throttle(self, rate_in: int | None = None, rate_out: int | None = None) -> None:
        """Set rate limits in kbit/s. None keeps a limit. If both are None, both become throttle_speed."""
        for rate in (rate_in, rate_out):
            if rate is not None and type(rate) is not int:
                raise TypeError(f"{rate!r:.40} is not a rate: use a whole number of kbit/s, or None")
        with self._asking() as session:
            session.services.throttle.set(session, rate_in, rate_out, by=self._by)

    def unthrottle(self) -> None:
        """Remove both rate limits."""
        with self._asking() as session:
            session.services.throttle.clear(session, by=self._by)

    def enter_garden(self, name: str = "garden") -> None:
        """Move the session into a walled garden, and build the garden if needed. May block."""
        _text(name)
        with self._asking() as session:
            session.services.gardens.enter(session, name, by=self._by)

    def leave_garden(self, user: str = "") -> None:
        """Move the session out of the walled garden, as after a login, with `user` as its name if given. May block."""
        _text(user)
        with self._asking() as session:
            session.services.gardens.leave(session, user=user, by=self._by)

    def snoop(self, address: IPv4Address | str | None = None, port: int = 0, *, by: str = "") -> None:
        """Copy its packets to an address and port, without an address to snoop_host and snoop_port. `by` names the
        requester in the audit log."""
        by = by or self._by
        with self._asking() as session:
            try:
                sink = None if address is None else _sink(address, port)
            except PluginError as error:
                session.services.snoop.refuse(session, str(error), by=by)
            session.services.snoop.start(session, sink, by=by)

    def unsnoop(self, *, by: str = "") -> None:
        """Stop copying its packets."""
        with self._asking() as session:
            session.services.snoop.stop(session, by=by or self._by)

    # End and accounting

    def drop(self, reason: str = "") -> None:
        """End the session after its current step. `reason` is sent to the LAC and logged."""
        self._living().end(causes.ADMIN_DROP, text=_reason(reason))

    def kill(self, reason: str = "") -> None:
        """End the session at once, even if it is blocked in a plugin."""
        session = self._living()
        if session.phase is Phase.CALL or session.greenlet is None:
            session.end(causes.ADMIN_DROP, text=_reason(reason))  # it is still waiting for the ICCN
        elif not session.releasing:
            session.greenlet.kill(SessionEnded(causes.ADMIN_DROP, text=_reason(reason)), block=False)

    def account(self) -> None:
        """Write an interim accounting record."""
        session = self._living()
        if not session.online_since:
            raise PluginError(f"session {session.id} is not online")
        session.account_interim()

    def _living(self) -> CoreSession:
        if not self.alive:
            raise PluginError(f"session {self._session.id} has ended")
        return self._session

    @contextmanager
    def _asking(self) -> Iterator[CoreSession]:
        """Yield the session, and turn a PolicyError into a PluginError."""
        try:
            yield self._living()
        except PolicyError as error:
            raise PluginError(str(error)) from error


def _speed(speed: int) -> int:
    if type(speed) is not int or not 0 <= speed < 2**32:
        raise ValueError(f"{speed!r} is not a speed in bit/s")
    return speed


def _text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{text!r:.40} is not a string")


def _reason(text: str) -> str:
    return str(text)[:MAX_REASON]


def _sink(address: IPv4Address | str, port: int) -> Sink:
    try:
        sink = Sink(IPv4Address(address), int(port))
    except (AddressValueError, ValueError):
        raise PluginError(f"{address!s:.40} {port!s:.10} is not an address and port") from None
    if not 0 < sink.port < 65536:
        raise PluginError(f"{sink.port} is not a port")
    return sink
