"""The state of one session: its call, link, login, address and times.

`Session` (session.py) adds its life. The modules accounting, authentication, authorization, network, plugin_hooks and
timers each implement one part of that life as functions of a `SessionState`. Only these modules, usage_files.py,
Session and state/restore.py set its fields; lns.py sets `greenlet`, and plugins may set the speeds.
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from l2tpns.causes import Cause, SessionEnded
from l2tpns.dataplane.session_path import SessionPath, key_of
from l2tpns.errors import ProtocolError
from l2tpns.policy.model import Policy
from l2tpns.proto.l2tp.messages import ICCN, ICRQ, WEN
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.radius.types import AuthReply
from l2tpns.runtime.scheduler import Rank, Turn
from l2tpns.runtime.timer_wheel import Timer
from l2tpns.subscriber.link import PppLink
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.services import LacConnection, Services


class SessionState:
    """One call, one PPP link, one subscriber: the fields, and changes that do not yield."""

    __slots__ = (
        "_ended_by_lac",
        "acct_session_id",
        "address",
        "alive",
        "awaited",
        "call_serial",
        "called",
        "calling",
        "connected",
        "credentials",
        "greenlet",
        "id",
        "link",
        "log",
        "next_challenge",
        "next_echo",
        "next_interim",
        "online_since",
        "opened_wall",
        "path",
        "peer_id",
        "plugins_notified",
        "policy",
        "profile",
        "proxied",
        "release_turn",
        "releasing",
        "renegotiations",
        "rx_speed",
        "services",
        "starting",
        "timeout_started_at",
        "timer",
        "tunnel",
        "tx_speed",
        "usage_file_octets",
        "user",
        "wide_errors",
    )

    link: PppLink

    def __init__(self, services: Services, tunnel: LacConnection, session_id: int, icrq: ICRQ) -> None:
        self.services = services
        self.tunnel = tunnel
        self.id = session_id
        self.peer_id = icrq.assigned_session_id
        self.log = tunnel.log.bind(session=session_id)
        self.path = SessionPath(
            key=key_of(tunnel.id, session_id),
            peer=tunnel.peer,
            endpoint=tunnel.endpoint,
            peer_tunnel_id=tunnel.peer_id,
            peer_session_id=self.peer_id,
            post=_drop,  # until the link is built
            now=services.session_timing.clock(),
        )
        self.called = _text(icrq.called_number)
        self.calling = _text(icrq.calling_number)
        self.call_serial = icrq.call_serial_number
        self.connected: ICCN | None = None
        self.wide_errors: WEN | None = None  # the last one
        self.tx_speed = self.rx_speed = 0  # bit/s as the LAC reports: to and from the subscriber
        self.user = ""
        self.credentials: Credentials | None = None
        self.proxied: Credentials | None = None  # the credentials that the LAC has received, until they are used
        self.profile: AuthReply | None = None
        self.acct_session_id = ""
        self.address: IPv4Address | None = None
        self.policy = Policy()
        self.online_since = 0.0  # monotonic; 0 while not online
        self.timeout_started_at = 0.0  # monotonic: Session-Timeout counts from here
        self.opened_wall = 0.0  # Unix time of online_since
        self.usage_file_octets = (0, 0)  # octets from and to the subscriber that were reported in usage files
        self.next_echo = self.next_interim = self.next_challenge = 0.0  # monotonic
        self.timer: Timer[Any] | None = None
        self.greenlet: Any = None
        self.renegotiations: tuple[float, ...] = ()  # times of the last ones of LCP, by link.now()
        self.alive = True  # in the LNS's table
        self.starting = True  # counted among the calls that are not online yet
        self.plugins_notified = False  # of the login, so they will be notified of the end
        self.awaited = False  # a newer session waits for the release
        self.release_turn: Turn | None = None  # while the release waits for its turn
        self.releasing = False
        self._ended_by_lac = False

    @property
    def phase(self) -> Phase:
        """Return the phase."""
        return self.link.phase

    @property
    def is_online(self) -> bool:
        """Return whether the session has logged in, has an address, and is accounted or in a walled garden."""
        return bool(self.online_since)

    @property
    def tunnel_id(self) -> int:
        """Return the id that this server assigned to its tunnel."""
        return self.tunnel.id

    @property
    def proven_user(self) -> str:
        """Return the user name if the login has proven it, which a walled garden does not: else an empty string."""
        return "" if self.policy.garden else self.user

    def change_policy(self, **changes: Any) -> None:
        """Replace fields of the policy. Does not yield."""
        self.policy = replace(self.policy, **changes)

    def rename(self, user: str) -> None:
        """Change the user name, in accounting too. Does not yield."""
        name = user.encode("utf-8", "surrogateescape")
        registry = self.services.registry
        registry.forget_user(self)
        self.user = name.decode("utf-8", "backslashreplace")  # like Credentials.user: valid in JSON
        registry.remember_user(self)
        if self.credentials is not None:
            self.credentials = replace(self.credentials, name=name)
        if self.profile is not None:
            self.profile = replace(self.profile, user=b"")

    def lac_moved(self, peer: tuple[str, int]) -> None:
        """Send to a new address of the LAC from now on. Does not yield."""
        self.log = self.link.log = self.log.bind(peer=f"{peer[0]}:{peer[1]}")
        self.path.peer = peer
        self.services.plane.changed(self.path)

    def end(self, reason: Cause, *, tell: bool = True, text: str = "") -> None:
        """Make the session end soon. Called from any greenlet, repeatedly. Does not yield."""
        self.link.end(SessionEnded(reason, tell=tell, text=text))

    def end_awaited(self, reason: Cause) -> None:
        """Make the session end before others: a newer one waits for its release. Does not yield."""
        self.awaited = True
        if self.release_turn is not None:
            self.services.session_scheduler.hurry(self.tunnel.lac, Rank.END, self.release_turn)
        self.end(reason)

    def end_from_lac(self, why: SessionEnded | ProtocolError) -> None:
        """End the session at the request of the LAC. Ignore repeated requests. Does not yield."""
        if not self._ended_by_lac:
            self._ended_by_lac = True
            self.link.end(why)


def _drop(protocol: int, information: bytes) -> None:
    """Drop a frame."""


def _text(octets: bytes | None) -> str:
    return "" if octets is None else octets.decode("utf-8", "backslashreplace")
