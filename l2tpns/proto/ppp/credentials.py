"""What a subscriber proves itself with, as the authentication protocols read it and RADIUS is asked about it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Credentials:
    """PAP gives `password`; CHAP gives `identifier`, `challenge` and `response`. None of the secrets is in the repr."""

    protocol: int  # the PPP protocol, Protocol.PAP or Protocol.CHAP
    name: bytes
    password: bytes = field(default=b"", repr=False)
    identifier: int = 0
    challenge: bytes = field(default=b"", repr=False)
    response: bytes = field(default=b"", repr=False)

    @property
    def user(self) -> str:
        """The name for people and logs; any octets can be a name."""
        return self.name.decode("utf-8", "backslashreplace")
