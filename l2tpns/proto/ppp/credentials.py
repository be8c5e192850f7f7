"""A subscriber's credentials, as PAP, CHAP and MS-CHAP receive them and the back end checks them.

RFC 1334, RFC 1994, RFC 2433, RFC 2759.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MD5, MS_CHAP_1, MS_CHAP_2 = 5, 0x80, 0x81  # algorithms of CHAP, as in LCP's option (RFC 1994 3, 2433 2, 2759 2)


@dataclass(frozen=True, slots=True)
class Credentials:
    """PAP sets `password`, CHAP sets `identifier`, `challenge` and `response`. No secret is in the repr."""

    protocol: int  # Protocol.PAP or Protocol.CHAP
    name: bytes
    password: bytes = field(default=b"", repr=False)
    identifier: int = 0
    challenge: bytes = field(default=b"", repr=False)
    response: bytes = field(default=b"", repr=False)
    algorithm: int = MD5  # of CHAP

    @property
    def user(self) -> str:
        """The name as text, for people and logs. Any octets can be a name."""
        return self.name.decode("utf-8", "backslashreplace")
