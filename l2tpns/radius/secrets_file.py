r"""Authentication from a file while no RADIUS server is configured: l2tpns.secrets, in pppd's chap-secrets format.

    # user     server   secret        address
    alice      *        "open sesame" 10.0.0.5
    bob        lns1     hunter2       *

Serves PAP, CHAP-MD5 and both versions of MS-CHAP (RFC 1334, RFC 1994, RFC 2433, RFC 2759). For MS-CHAP the name may
be written without `DOMAIN\`. The address column is one address, `*` or nothing (an address of the pool)
or `-` (this user may not log in); networks and `@file` secrets, which pppd has, are not supported.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from errno import ENOENT
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from l2tpns.errors import ConfigError, refused
from l2tpns.proto.ppp.credentials import MD5, MS_CHAP_1, MS_CHAP_2, Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.mschap import parse_value1, parse_value2, without_domain
from l2tpns.radius.report import InFlight, ServerReport
from l2tpns.radius.types import Assign, AuthReply, AuthRequest
from l2tpns.runtime import files
from l2tpns.runtime.log import Logger
from l2tpns.runtime.text_file import oddity, read_lines

ANY = b"*"
BARRED = "-"
REFUSAL = b"wrong name or password"


@dataclass(frozen=True, slots=True)
class Secret:
    """One line of the file."""

    user: bytes
    server: bytes
    secret: bytes
    address: IPv4Address | None = None
    barred: bool = False


class SecretsBackend:
    """The users of one file. reload() reads it again and keeps the old contents when it fails."""

    def __init__(self, path: str | Path, hostname: str, log: Logger) -> None:
        self._log = log
        self._path = Path(path)
        self._hostname = hostname.encode()
        self._secrets: dict[bytes, list[Secret]] = {}
        self.reload()

    def reload(self) -> None:
        """Read the file. Raises ConfigError with file and line."""
        try:
            lines = read_lines(self._path)
            found = self._path.stat()
        except OSError as error:
            why = f"{self._path}: {error.strerror}; the users who may log in while primary_radius is not set are there"
            raise (ConfigError(why) if error.errno == ENOENT else refused(error.errno, why)) from error
        secrets: dict[bytes, list[Secret]] = {}
        doubtful: list[tuple[int, str]] = []
        for line in lines:
            odd = oddity(line.text)
            try:
                secret = parse_line(line.octets)
            except ValueError as error:
                hint = f"; the line {odd}" if odd else ""
                raise ConfigError(f"{self._path}, line {line.number}: {error}{hint}") from None
            if secret is not None:
                secrets.setdefault(secret.user, []).append(secret)
                doubtful += [(line.number, odd)] if odd else []
        for number, odd in doubtful:  # now that the file is accepted
            self._log.warning("secrets_line_doubtful", path=str(self._path), line=number, why=odd)
        if files.beyond_own_group(found):
            mode = f"{found.st_mode & 0o777:o}"
            self._log.warning("secrets_file_open_to_others", path=str(self._path), mode=mode)
        self._secrets = secrets
        self._log.info("secrets_read", path=str(self._path), users=len(secrets))

    def authenticate(self, request: AuthRequest) -> AuthReply:
        credentials = request.credentials
        entry = self._find(credentials.name)
        if entry is None and credentials.algorithm in (MS_CHAP_1, MS_CHAP_2):
            entry = self._find(without_domain(credentials.name))
        # An unknown user takes as much time as a wrong password.
        secret = entry.secret if entry else b"\0"
        proof = b""
        if credentials.protocol == Protocol.PAP:
            right = hmac.compare_digest(credentials.password, secret)
        elif credentials.protocol == Protocol.CHAP and credentials.algorithm == MD5:
            # RFC 1994 4.1: identifier, secret, challenge
            octets = bytes([credentials.identifier & 0xFF]) + secret + credentials.challenge
            right = hmac.compare_digest(credentials.response, hashlib.md5(octets, usedforsecurity=False).digest())
        elif credentials.protocol == Protocol.CHAP:
            right, proof = check_ms_chap(credentials, secret)
        else:
            right = False
        if entry is None or not right or entry.barred:
            why = "unknown user" if entry is None else "wrong password" if not right else "barred in the secrets file"
            return AuthReply(accepted=False, message=REFUSAL, why=why)
        if entry.address is None:
            return AuthReply(accepted=True, proof=proof)
        return AuthReply(accepted=True, assign=Assign.FIXED, address=entry.address, proof=proof)

    def report(self) -> list[ServerReport]:
        return []

    def in_flight(self) -> list[InFlight]:
        return []

    def _find(self, user: bytes) -> Secret | None:
        """Return the line for a user: an exact name before `*`, an exact server before `*`. An empty secret is none."""
        for name in (user, ANY):
            entries = self._secrets.get(name, [])
            for server in (self._hostname, ANY):
                for entry in entries:
                    if entry.server == server and entry.secret:
                        return entry
        return None


def check_ms_chap(credentials: Credentials, secret: bytes) -> tuple[bool, bytes]:
    """Return whether a response of MS-CHAP is right, and the proof that version 2 has to send then (RFC 2759 5)."""
    from l2tpns.proto.ppp import mschap_hashes as hashes  # DES and MD4: loaded only where they are used

    challenge, password_hash = credentials.challenge, hashes.nt_hash(secret)
    if credentials.algorithm == MS_CHAP_1:
        value = parse_value1(credentials.response)
        expected = hashes.challenge_response(challenge, password_hash)
        # A response with LAN Manager's hash alone is refused: that hash ignores case and has two parts of seven octets.
        return bool(value.flags & 1) and hmac.compare_digest(value.nt, expected), b""
    answer = parse_value2(credentials.response)
    expected = hashes.nt_response(challenge, answer.peer_challenge, credentials.name, password_hash)
    proof = hashes.authenticator_response(challenge, answer.peer_challenge, credentials.name, password_hash, answer.nt)
    return hmac.compare_digest(answer.nt, expected), proof


def parse_line(line: bytes) -> Secret | None:
    """Parse one line. Return None when it is empty. Raises ValueError."""
    words = split_words(line)
    if not words:
        return None
    if len(words) < 3:
        raise ValueError("needs user, server and secret")
    user, server, secret = words[:3]
    if secret.startswith(b"@"):
        raise ValueError("a secret in a file of its own (@file) is not supported")
    if len(words) > 4:
        raise ValueError("only one address may follow the secret")
    address = words[3].decode("utf-8", "replace") if len(words) == 4 else "*"
    if address == "*":
        return Secret(user, server, secret)
    if address == BARRED:
        return Secret(user, server, secret, barred=True)
    try:
        return Secret(user, server, secret, IPv4Address(address))
    except AddressValueError:
        raise ValueError(f"{address} is neither an IPv4 address nor * nor -") from None


def split_words(line: bytes) -> list[bytes]:
    """Split a line as pppd does: at blanks, except in quotes and after a backslash; # begins a comment."""
    words: list[bytes] = []
    at = 0
    while at < len(line):
        if line[at] in b" \t\r":
            at += 1
            continue
        if line[at : at + 1] == b"#":
            break
        word = bytearray()
        quote = 0
        while at < len(line) and (quote or line[at] not in b" \t\r"):
            octet = line[at]
            if octet == 0x5C:  # backslash
                at += 1
                if at == len(line):
                    raise ValueError("ends with a backslash")
                word.append(line[at])
            elif quote and octet == quote:
                quote = 0
            elif not quote and octet in b"\"'":
                quote = octet
            else:
                word.append(octet)
            at += 1
        if quote:
            raise ValueError(f"a {chr(quote)} is not closed")
        words.append(bytes(word))
    return words
