"""Proxy LCP and proxy authentication: what a LAC has negotiated on behalf of this LNS (RFC 2661 4.4.5).

A link is adopted only if the login can continue from there. The LNS can send a CHAP Challenge at any time. A PAP
request can be sent only by the subscriber, which has sent it to the LAC. If the LAC does not forward it, LCP is
renegotiated, which makes the subscriber send it again at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from l2tpns.config.settings import Config
from l2tpns.proto.l2tp.messages import ICCN, ProxyAuthenType
from l2tpns.proto.ppp import chap, pap
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.lcp import AuthChoice, Lcp
from l2tpns.proto.ppp.options import build_options

MAX_CHALLENGE = 253  # octets of a RADIUS attribute (RFC 2865 5)


@dataclass(frozen=True, slots=True)
class ProxyResult:
    """What was adopted: no LCP if `why_not` is set, no authentication if `credentials` is None."""

    why_not: str = ""
    credentials: Credentials | None = None


def adopt_proxy(lcp: Lcp, iccn: ICCN, config: Config, now: float) -> ProxyResult:
    """Adopt the LCP of the LAC, which is then Opened, and the subscriber's credentials if they are usable."""
    sent, received = iccn.last_sent_lcp_confreq, iccn.last_received_lcp_confreq
    if sent is None and received is None:
        return ProxyResult("the LAC did not negotiate LCP")
    if not config.proxy_lcp:
        return ProxyResult("proxy_lcp is no")
    if sent is None or received is None:
        return ProxyResult("one of the LAC's LCP AVPs is missing")
    credentials = usable_credentials(iccn) if config.proxy_authentication else None
    by_pap = credentials is not None and credentials.protocol == Protocol.PAP
    choices = tuple(choice for choice in lcp.wishes.auth if choice is not AuthChoice.PAP or by_pap)
    if not lcp.adopt(sent, received, now, choices):
        pap_alone = build_options([AuthChoice.PAP.option]) in sent and AuthChoice.PAP not in choices
        return ProxyResult(
            "the LAC used PAP, but its PAP request cannot be used here"
            if pap_alone
            else "the LAC negotiated options that this LNS does not accept"
        )
    # There is no proxy authentication by MS-CHAP version 2, and none by version 1 here: there is a new challenge.
    if credentials is not None and lcp.auth is not (AuthChoice.PAP if by_pap else AuthChoice.CHAP_MD5):
        credentials = None
    return ProxyResult(credentials=credentials)


def usable_credentials(iccn: ICCN) -> Credentials | None:
    """Return the credentials that the subscriber sent to the LAC, None if they are incomplete or invalid."""
    if not iccn.proxy_authen_usable:
        return None
    name, response = iccn.proxy_authen_name or b"", iccn.proxy_authen_response or b""
    identifier = (iccn.proxy_authen_id or 0) & 0xFF
    if not 0 < len(name) <= pap.MAX_FIELD:
        return None
    if iccn.proxy_authen_type == ProxyAuthenType.PAP and 0 < len(response) <= pap.MAX_FIELD:
        return Credentials(Protocol.PAP, name, password=response, identifier=identifier)
    challenge = iccn.proxy_authen_challenge or b""
    if (
        iccn.proxy_authen_type == ProxyAuthenType.CHAP
        and 0 < len(challenge) <= MAX_CHALLENGE
        and len(response) == chap.MD5_SIZE
    ):
        return Credentials(Protocol.CHAP, name, identifier=identifier, challenge=challenge, response=response)
    return None
