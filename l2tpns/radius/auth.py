"""Authentication: from a subscriber's credentials to a verdict (RFC 2865 4.1 to 4.4, RFC 2869).

Access-Challenge is not supported and counts as a refusal (RFC 2865 4.4). reply.py reads the attributes of the answer;
sockets and tries are in transport.py.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

from l2tpns.errors import NoAnswer, WireError
from l2tpns.proto.ppp.credentials import MD5, MS_CHAP_1, MS_CHAP_2, Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.mschap import VALUE_SIZE
from l2tpns.radius import packets
from l2tpns.radius.framing import ACCESS_ACCEPT, ACCESS_CHALLENGE, ACCESS_REJECT, MAX_VALUE
from l2tpns.radius.reply import ignored_attributes, parse_reply
from l2tpns.radius.reply_packet import ReplyPacket
from l2tpns.radius.report import InFlight, ServerReport
from l2tpns.radius.request_packet import RequestPacket
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.transport import Transport
from l2tpns.radius.types import MTUS, AuthReply, AuthRequest
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.log import Logger
from l2tpns.runtime.repeat_filter import RepeatFilter
from l2tpns.runtime.supervisor import Supervisor

MAX_PASSWORD = 128  # RFC 2865 5.2
CHAP_RESPONSES = {MD5: 16, MS_CHAP_1: VALUE_SIZE, MS_CHAP_2: VALUE_SIZE}  # octets
CHAP_LABELS = {MD5: "CHAP", MS_CHAP_1: "MS-CHAP", MS_CHAP_2: "MS-CHAPv2"}
PROOF = re.compile(rb"S=[0-9A-Fa-f]{40}(?![0-9A-Fa-f])")
IGNORED_LOG_INTERVAL = 3600.0  # seconds between two log lines about the same attribute that is ignored


class RadiusBackend:
    """The RADIUS servers. One for the whole daemon; called from every session's greenlet."""

    def __init__(
        self,
        settings: RadiusSettings,
        log: Logger,
        *,
        random: Callable[[int], bytes] = os.urandom,
        supervisor: Supervisor | None = None,
        awake: AwakeClock | None = None,
    ) -> None:
        self._log = log
        self._random = random
        self._ignored = RepeatFilter(IGNORED_LOG_INTERVAL)
        self.transport = Transport(settings, log, random=random, awake=awake, supervisor=supervisor)

    def configure(self, settings: RadiusSettings) -> None:
        self.transport.configure(settings)

    def close(self) -> None:
        self.transport.close()

    def report(self) -> list[ServerReport]:
        return self.transport.report()

    def in_flight(self) -> list[InFlight]:
        return self.transport.in_flight()

    def authenticate(self, request: AuthRequest) -> AuthReply:
        settings = self.transport.settings
        if not settings.secret:
            raise NoAnswer("radius_secret is not set: no request is sent")
        credentials = request.credentials
        why = impossible_request(request)
        if why:
            return AuthReply(accepted=False, why=why)

        def encode(identifier: int, local: IPv4Address) -> tuple[RequestPacket, bytes]:
            packet = packets.new_access_request(identifier, settings.secret, self._random(16))
            fill_access_request(packet, request, settings, local)
            return packet, packet.encode()

        label = CHAP_LABELS[credentials.algorithm] if credentials.protocol == Protocol.CHAP else "PAP"
        reply = self.transport.request(encode, label=label, session_id=request.session_id)
        if reply.code not in (ACCESS_ACCEPT, ACCESS_REJECT, ACCESS_CHALLENGE):
            self._log.error("radius_reply_unknown", user=credentials.user, code=reply.code)
            return AuthReply(accepted=False, why="the RADIUS reply has an unknown code")
        try:
            verdict = parse_reply(reply, self._log)
        except WireError as error:
            # RFC 2865 5: an attribute of the wrong length makes an Accept a Reject, or nothing. The server would
            # send the same again, so the login is refused at once.
            self._log.error("radius_reply_invalid", user=credentials.user, session=request.session_id, why=str(error))
            return AuthReply(accepted=False, why="the RADIUS reply is invalid")
        if reply.code == ACCESS_ACCEPT and not verdict.accepted:
            self._log.warning_limited(
                "radius_service_refused", user=credentials.user, session=request.session_id, why=verdict.why
            )
        if verdict.accepted:
            self._log_ignored(reply, credentials.user)
        return checked_proof(credentials, verdict)

    def _log_ignored(self, reply: ReplyPacket, user: str) -> None:
        """Log each ignored attribute once in a while, without its value, which may be a key."""
        for attribute in ignored_attributes(reply):
            if self._ignored.due(attribute, time.monotonic()):
                self._log.info("radius_attribute_ignored", attribute=attribute, user=user, why="not supported")


def impossible_request(request: AuthRequest) -> str:
    """Return why these credentials fit into no Access-Request, or an empty string."""
    credentials = request.credentials
    if not 1 <= len(credentials.name) <= MAX_VALUE:
        return f"user name of {len(credentials.name)} octets"
    if credentials.protocol == Protocol.PAP:
        return f"password of {len(credentials.password)} octets" if len(credentials.password) > MAX_PASSWORD else ""
    if credentials.protocol == Protocol.CHAP:
        if (
            len(credentials.response) != CHAP_RESPONSES.get(credentials.algorithm)
            or not 1 <= len(credentials.challenge) <= MAX_VALUE
        ):
            return "CHAP response or challenge of a wrong length"
        return ""
    return f"protocol {credentials.protocol:#06x}"


def checked_proof(credentials: Credentials, verdict: AuthReply) -> AuthReply:
    """Return the verdict with the proof for MS-CHAP version 2, a refusal if it is missing (RFC 2548 2.3.3)."""
    if credentials.protocol != Protocol.CHAP or credentials.algorithm != MS_CHAP_2:
        return replace(verdict, proof=b"") if verdict.proof else verdict
    found = PROOF.match(verdict.proof, 1)
    if found and verdict.proof[0] == credentials.identifier & 0xFF:
        return replace(verdict, proof=found[0])
    if not verdict.accepted:
        return replace(verdict, proof=b"")
    why = "MS-CHAP2-Success is not of this response" if found else "MS-CHAP2-Success is missing or invalid"
    return replace(verdict, accepted=False, proof=b"", message=b"", why=why)


def put_response(packet: RequestPacket, credentials: Credentials) -> None:
    """Add the response of CHAP or MS-CHAP, and its challenge (RFC 2865 5.3, RFC 2548 2.1.3, 2.3.2)."""
    identifier = bytes([credentials.identifier & 0xFF])
    response = credentials.response
    if credentials.algorithm == MD5:
        packets.put_octets(packet, "CHAP-Password", identifier + response)
        packets.put_octets(packet, "CHAP-Challenge", credentials.challenge)
        return
    name = "MS-CHAP-Response" if credentials.algorithm == MS_CHAP_1 else "MS-CHAP2-Response"
    packets.put_octets(packet, "MS-CHAP-Challenge", credentials.challenge)
    # The flags, which end the response, come first there.
    packets.put_octets(packet, name, identifier + response[-1:] + response[:-1])


def fill_access_request(
    packet: RequestPacket, request: AuthRequest, settings: RadiusSettings, local: IPv4Address
) -> None:
    """Add the attributes of an Access-Request (RFC 2865 5.44)."""
    credentials = request.credentials
    packets.put_octets(packet, "User-Name", credentials.name)
    if credentials.protocol == Protocol.PAP:
        packets.put_octets(packet, "User-Password", packet.hide(credentials.password))
    else:
        put_response(packet, credentials)
    packets.put_nas(packet, settings.nas_address or local, settings.nas_identifier)
    packets.put_call(packet, request)
    if request.mtu in MTUS:
        packets.put_field(packet, "Framed-MTU", request)
    packets.put_field(packet, "State", request)
