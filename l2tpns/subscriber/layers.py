"""Interfaces of the protocols above LCP: authenticators and network layers (RFC 1661 3.5, 3.6).

A link dispatches frames to them. To add an authentication method or a network protocol, write a class with these
methods.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any, Protocol

from l2tpns.causes import SessionEnded
from l2tpns.proto.ppp.credentials import Credentials


class Answer(Protocol):
    """The last reply of an authenticator, for the saved state."""

    @property
    def identifier(self) -> int: ...

    @property
    def message(self) -> bytes: ...


class Authenticator(Protocol):
    """Authenticates the subscriber (PapServer, ChapServer ... in proto/ppp). `now` is the link's time in seconds."""

    @property
    def protocol(self) -> int:
        """Return the PPP protocol number."""

    @property
    def method(self) -> str:
        """Return the name in the log: pap, chap, mschap or mschapv2."""

    @property
    def repeats(self) -> bool:
        """Return whether the subscriber can be challenged again while online."""

    @property
    def proves(self) -> bool:
        """Return whether a positive reply contains a proof that the server knows the password."""

    @property
    def challenging(self) -> bool:
        """Return whether a challenge awaits its response or verdict."""

    @property
    def exhausted(self) -> bool:
        """Return whether Max-Configure challenges had no response."""

    @property
    def deadline(self) -> float | None:
        """Return when `timeout` must be called, None for never."""

    def start(self, now: float) -> None:
        """Send the first challenge, if the method has one."""

    def receive(self, packet: bytes, now: float) -> Credentials | None:
        """Handle a packet. Return new credentials that await a verdict, None if there are none. Does not raise."""

    def adopt(self, credentials: Credentials) -> None:
        """Await the verdict on credentials that the LAC has received (RFC 2661 4.4.5)."""

    def verdict(self, ok: bool, message: bytes = b"", *, proof: bytes = b"", error: int = 0) -> None:
        """Reply to credentials that await a verdict, if there are any. `error` is a code of MS-CHAP."""

    def rechallenge(self, now: float) -> None:
        """Send a new challenge, unless one is outstanding."""

    def timeout(self, now: float) -> None:
        """Run the timer that is due at `deadline`."""

    def ask_again(self) -> None:
        """Allow one more retransmission of the challenge: this process was paused and may have lost a response."""

    def record(self) -> Answer:
        """Return the last reply, for the saved state."""

    def restore(self, identifier: int, message: bytes) -> None:
        """Restore the positive reply of an earlier process."""


class NetworkLayer(Protocol):
    """A network protocol of the link and its NCP: network.py has IPv4."""

    @property
    def protocol(self) -> int:
        """Return the NCP's PPP protocol number."""

    @property
    def name(self) -> str:
        """Return the name of the NCP in the log: IPCP."""

    @property
    def state(self) -> str:
        """Return the state of the NCP (RFC 1661 4.2), as the console shows it."""

    @property
    def opened(self) -> bool:
        """Return whether the NCP is in state Opened."""

    @property
    def ready(self) -> bool:
        """Return whether the NCP is in state Opened with the address of the session."""

    @property
    def peer_address(self) -> IPv4Address | None:
        """Return the address that the subscriber has negotiated."""

    @property
    def deadline(self) -> float | None:
        """Return when `timeout` must be called, None for never."""

    def open(self, now: float) -> None:
        """Start the negotiation."""

    def receive(self, packet: bytes, now: float) -> None:
        """Handle a packet of the NCP. Does not raise."""

    def timeout(self, now: float) -> None:
        """Run the timer that is due at `deadline`."""

    def ask_again(self) -> None:
        """Allow one more retransmission of the request: this process was paused and may have lost a reply."""

    def failure(self) -> SessionEnded | None:
        """Return the end of the session if the negotiation has failed, else None."""

    def disagreement(self) -> SessionEnded | None:
        """Return the end of the session if the NCP opened with an address other than the session's, else None."""

    def refusals(self) -> list[str]:
        """Return the names of options that the subscriber requested and was refused."""

    def record(self) -> Any:
        """Return the record for the saved state."""

    def restore(self, record: Any) -> None:
        """Restore state Opened of an earlier process. Sends nothing."""
