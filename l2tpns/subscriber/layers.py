"""What a PPP link dispatches its frames to: an authenticator, and network layers (RFC 1661 3.5, 3.6).

LCP is the link's own. Another authentication method, or another network protocol, is another class with these methods.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any, Protocol

from l2tpns.causes import SessionEnded
from l2tpns.proto.ppp.credentials import Credentials


class Answer(Protocol):
    """What an authenticator has answered, for the saved state."""

    @property
    def identifier(self) -> int: ...

    @property
    def message(self) -> bytes: ...


class Authenticator(Protocol):
    """Authenticates the subscriber: PapServer or ChapServer (proto/ppp). `now` is the link's time, in seconds."""

    @property
    def protocol(self) -> int:
        """Return its PPP protocol number."""

    @property
    def method(self) -> str:
        """Return its name in the log: pap, chap."""

    @property
    def repeats(self) -> bool:
        """Return whether the subscriber can be asked again while it is online."""

    @property
    def challenging(self) -> bool:
        """Return whether a challenge waits for its answer or its verdict."""

    @property
    def exhausted(self) -> bool:
        """Return whether the subscriber has answered none of our challenges."""

    @property
    def deadline(self) -> float | None:
        """Return when `timeout` must be called, None for never."""

    def start(self, now: float) -> None:
        """Send the first challenge, where the method has one."""

    def receive(self, packet: bytes, now: float) -> Credentials | None:
        """Take a packet. Return credentials that wait for a verdict, once. Raises nothing."""

    def adopt(self, credentials: Credentials) -> None:
        """Wait for the verdict on credentials that the LAC has received (RFC 2661 4.4.5)."""

    def verdict(self, ok: bool, message: bytes = b"") -> None:
        """Answer the credentials that wait for it, if there are any."""

    def rechallenge(self, now: float) -> None:
        """Ask again, unless that is going on."""

    def timeout(self, now: float) -> None:
        """Do what is due at `deadline`."""

    def ask_again(self) -> None:
        """Send one challenge more at least: an answer may be lost, since this process has stood still."""

    def record(self) -> Answer:
        """Return the last answer, for the saved state."""

    def restore(self, identifier: int, message: bytes) -> None:
        """Go on after a positive answer of an earlier process."""


class NetworkLayer(Protocol):
    """A network protocol of the link, with its NCP: network.py has IPv4's."""

    @property
    def protocol(self) -> int:
        """Return the NCP's PPP protocol number."""

    @property
    def name(self) -> str:
        """Return the NCP's name in the log: IPCP."""

    @property
    def state(self) -> str:
        """Return the NCP's state (RFC 1661 4.2), as the console shows it."""

    @property
    def opened(self) -> bool:
        """Return whether the NCP is in state Opened."""

    @property
    def ready(self) -> bool:
        """Return whether it is opened, with the address that the session has."""

    @property
    def peer_address(self) -> IPv4Address | None:
        """Return the address that the subscriber has negotiated."""

    @property
    def deadline(self) -> float | None:
        """Return when `timeout` must be called, None for never."""

    def open(self, now: float) -> None:
        """Begin to negotiate."""

    def receive(self, packet: bytes, now: float) -> None:
        """Take a packet of the NCP. Raises nothing."""

    def timeout(self, now: float) -> None:
        """Do what is due at `deadline`."""

    def ask_again(self) -> None:
        """Send one request more at least: an answer may be lost, since this process has stood still."""

    def failure(self) -> SessionEnded | None:
        """Return why the session has to end if the two sides cannot agree, None while they may."""

    def disagreement(self) -> SessionEnded | None:
        """Return why the session has to end if it was opened with another address than the session's."""

    def refusals(self) -> list[str]:
        """Return what the subscriber has asked for and not got, by the standards' names."""

    def record(self) -> Any:
        """Return what the saved state needs."""

    def restore(self, record: Any) -> None:
        """Go on in state Opened where an earlier process was. Sends nothing."""
