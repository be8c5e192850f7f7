"""Authentication of a tunnel by its shared secret (RFC 2661 5.1.1, RFC 2661 4.4.3: Challenge, Challenge Response).

Each end may challenge the other. The response depends on the type of the message that carries it, so the same code
serves the end that sends the SCCRQ and the end that receives it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from l2tpns.errors import ProtocolError
from l2tpns.proto.l2tp import messages
from l2tpns.proto.l2tp.messages import StopCcnResult

CHALLENGE_LENGTH = 16  # octets


class TunnelAuthentication:
    """Both directions of one tunnel's authentication. An empty secret: none is configured."""

    __slots__ = ("_challenge", "_secret")

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._challenge = b""

    def challenge(self, random: Callable[[int], bytes]) -> bytes:
        """Return our challenge, which the LAC's next message must answer."""
        self._challenge = random(CHALLENGE_LENGTH)
        return self._challenge

    def respond(self, message_type: int, challenge: bytes | None) -> bytes | None:
        """Return our response to the LAC's challenge, for a message of this type. None: there is no challenge.

        Raises ProtocolError if no secret is configured.
        """
        if challenge is None:
            return None
        if not self._secret:
            raise no_secret()
        return messages.tunnel_auth_response(message_type, self._secret, challenge)

    def accepts(self, message_type: int, response: bytes | None) -> bool:
        """Return True if the response in a message of this type is right, or if we sent no challenge."""
        if not self._challenge:
            return True
        expected = messages.tunnel_auth_response(message_type, self._secret, self._challenge)
        return hmac.compare_digest(expected, response or b"")


def no_secret() -> ProtocolError:
    """Return the refusal of a challenge that cannot be answered."""
    return ProtocolError(StopCcnResult.NOT_AUTHORISED, 0, "no secret is configured to answer a Challenge")
