"""Share parts of the RADIUS tests: settings for a scripted server, credentials, usage."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any

from l2tpns.proto.ppp import mschap_hashes as hashes
from l2tpns.proto.ppp.credentials import MS_CHAP_1, MS_CHAP_2, Credentials
from l2tpns.radius.settings import RadiusSettings, ServerAddress
from l2tpns.radius.types import AuthRequest, Usage
from tests.lab.radius_server import RadiusServer

SECRET = b"testing123"
PAP, CHAP = 0xC023, 0xC223


def settings_for(*servers: RadiusServer, **changes: Any) -> RadiusSettings:
    settings = RadiusSettings(
        servers=tuple(ServerAddress(s.host, s.port) for s in servers),
        accounting_servers=tuple(ServerAddress(s.host, s.port + 1) for s in servers),
        secret=SECRET,
        accounting=True,
        timeout=0.1,
        nas_identifier="lns1",
    )
    return replace(settings, **changes)


def pap(name: bytes = b"alice", password: bytes = b"secret") -> Credentials:
    return Credentials(PAP, name, password=password)


def chap(name: bytes = b"alice", password: bytes = b"secret", identifier: int = 7) -> Credentials:
    challenge = bytes(range(20))
    response = hashlib.md5(bytes([identifier]) + password + challenge).digest()
    return Credentials(CHAP, name, identifier=identifier, challenge=challenge, response=response)


def mschap(name: bytes = b"alice", password: bytes = b"secret", identifier: int = 7) -> Credentials:
    challenge = bytes(range(8))
    value = bytes(24) + hashes.challenge_response(challenge, hashes.nt_hash(password)) + b"\1"
    return Credentials(CHAP, name, b"", identifier, challenge, value, MS_CHAP_1)


def mschapv2(name: bytes = b"alice", password: bytes = b"secret", identifier: int = 7) -> Credentials:
    challenge, peer = bytes(range(16)), bytes(range(16, 32))
    value = peer + bytes(8) + hashes.nt_response(challenge, peer, name, hashes.nt_hash(password)) + b"\0"
    return Credentials(CHAP, name, b"", identifier, challenge, value, MS_CHAP_2)


def login(credentials: Credentials | None = None, **facts: Any) -> AuthRequest:
    return AuthRequest(credentials or pap(), session_id=42, acct_session_id="5F00000000000001", **facts)


def usage(session: str = "5F00000000000001", **facts: Any) -> Usage:
    known: dict[str, Any] = {"user": b"alice", "session_id": 42, "address": IPv4Address("10.0.0.5")}
    return Usage(acct_session_id=session, **{**known, **facts})
