"""A subscriber's credentials, as PAP and CHAP receive them (RFC 1334, RFC 1994) and the back end checks them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """PAP sets `password`, CHAP sets `identifier`, `challenge` and `response`. No secret is in the repr."""

    protocol: int  # Protocol.PAP or Protocol.CHAP
    name: bytes
    password: bytes = field(default=b"", repr=False)
    identifier: int = 0
    challenge: bytes = field(default=b"", repr=False)
    response: bytes = field(default=b"", repr=False)

    @property
    def user(self) -> str:
        """The name as text, for people and logs. Any octets can be a name."""
        return self.name.decode("utf-8", "backslashreplace")
