"""The nsctl client: sends one command to a running l2tpns and prints the reply (manual: nsctl; docs/nsctl.md).

The protocol is 0x9013 over UDP: a request is retransmitted until the timeout, and the server executes it only once.
This module imports little, so that scripts can call it often.
"""

from __future__ import annotations

import getopt
import os
import secrets
import socket
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from l2tpns import __version__
from l2tpns.errors import ConfigError, L2tpnsError, NoAnswer, WireError
from l2tpns.proto.nsctl.packet import NOT_AUTHORISED, PORT, UNKNOWN_COMMAND, Packet, Request, Type, decode
from l2tpns.proto.nsctl.seal import MAX_SEALED, NONCE_OCTETS, Direction, Sealed, unseal
from l2tpns.runtime.text_file import split_lines

USAGE = """\
usage: nsctl [-d] [-h HOST[:PORT]] [-t SECONDS] [-k FILE] COMMAND [ARGUMENT...]
       nsctl HOST garden|ungarden SESSION

  -d             print the packets sent and received, in hexadecimal
  -h HOST[:PORT] server to contact (default: 127.0.0.1:1702)
  -t SECONDS     time to wait for a reply (default: 2)
  -k FILE        file with the server's nsctl_secret, required on other hosts; mode 0600
                 (default: the environment variable NSCTL_KEY_FILE)
  --help, --version

Commands: help, load_plugin NAME, unload_plugin NAME, and those that plugins add. "nsctl help" lists them.

Exit status: 0 success, 1 the command failed, 2 usage error, 3 no reply, 4 the server or its host refused the
request, 5 unknown command."""

DONE, FAILED, USAGE_ERROR, UNANSWERED, REFUSED, UNKNOWN = range(6)
KEY_FILE = "NSCTL_KEY_FILE"
MAX_KEY_FILE = 4096  # octets; the rest is ignored
MIN_KEY = 16  # octets, as for nsctl_secret
MAX_TIMEOUT = 3600.0  # seconds
RETRANSMIT_INTERVAL = 0.5  # seconds until the first retransmission; 1 s after that


class UsageError(L2tpnsError):
    """The command line or the key file is wrong."""


class Refused(L2tpnsError):
    """No server listens on the port."""


@dataclass(frozen=True, slots=True)
class Options:
    """The command line."""

    words: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = PORT
    timeout: float = 2.0
    key_file: str = ""
    show_octets: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Run the client. Return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if "--help" in argv[:1] or "--version" in argv[:1]:
        print(USAGE if argv[0] == "--help" else f"nsctl {__version__}")
        return DONE
    try:
        options = parse_arguments(argv)
        answer = ask(options, read_key(options.key_file) if options.key_file else b"")
    except UsageError as error:
        return fail(str(error), USAGE_ERROR)
    except NoAnswer as silence:
        return fail(str(silence), UNANSWERED)
    except Refused as refused:
        return fail(str(refused), REFUSED)
    if answer.type == Type.OK:
        if answer.arguments:
            print(printable(answer.text))
        return DONE
    if answer.text.startswith(UNKNOWN_COMMAND):
        return fail(answer.text, UNKNOWN)
    return fail(answer.text, REFUSED if answer.text.startswith(NOT_AUTHORISED) else FAILED)


def fail(text: str, status: int) -> int:
    print(f"nsctl: {printable(text)}", file=sys.stderr)
    return status


# The command line


def parse_arguments(argv: Sequence[str]) -> Options:
    """Parse the command line. Raises UsageError."""
    try:
        found, words = getopt.getopt(list(argv), "dh:t:k:")
    except getopt.GetoptError as error:
        raise UsageError(f"{error}\n{USAGE}") from None
    options = dict(found)
    host = options.get("-h", "127.0.0.1")
    # The manual's form. No command takes one of these words as its first argument, so the form is unambiguous.
    if len(words) == 3 and words[1] in ("garden", "ungarden") and "-h" not in options:
        host, *words = words
    if not words:
        raise UsageError(f"no command\n{USAGE}")
    name, colon, port = host.partition(":")
    if not name or (colon and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) <= 65535)):
        raise UsageError(f'"{host}" is no HOST or HOST:PORT')
    return Options(
        words=tuple(words),
        host=name,
        port=int(port) if colon else PORT,
        timeout=_seconds(options.get("-t", "2")),
        key_file=options.get("-k") or os.environ.get(KEY_FILE, ""),
        show_octets="-d" in options,
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise UsageError(f'-t: "{text}" is no number of seconds, at most {MAX_TIMEOUT:.0f}')
    return seconds


def read_key(path: str) -> bytes:
    """Return the first line of the key file. Raises UsageError if other users can access the file."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise UsageError(f"{path} is not a regular file")
            if found.st_mode & 0o077:
                raise UsageError(f"{path} is open to others: its mode must be 0600")
            lines = split_lines(file.read(MAX_KEY_FILE), path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ConfigError as error:
        raise UsageError(str(error)) from None
    key = lines[0].octets if lines else b""
    if len(key) < MIN_KEY:
        raise UsageError(f"{path}: the key is the first line, and has {MIN_KEY} octets at least")
    return key


# Request and reply


def ask(options: Options, key: bytes) -> Packet:
    """Send the command and return the reply. Raises UsageError, NoAnswer or Refused."""
    try:
        octets = Packet.asking(Request.of(options.words)).encode()
    except WireError as error:
        raise UsageError(f"the command is too long: {error}") from None
    nonce = secrets.token_bytes(NONCE_OCTETS)
    if key:
        octets = Sealed(Direction.REQUEST, time.time(), nonce, octets).encode(key)
    where = f"{options.host}:{options.port}"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((options.host, options.port))
            for heard in _exchange(sock, octets, options):
                answer = _read(heard, key, nonce)
                if answer is not None:
                    return answer
    except ConnectionRefusedError:
        raise Refused(f"{where} refuses: nothing listens there") from None
    except OSError as error:
        raise NoAnswer(f"{where}: {error.strerror}") from None
    hint = "; is the key the server's nsctl_secret?" if key else ""
    if not key and not options.host.startswith(("127.", "localhost")):
        hint = "; other hosts need its nsctl_secret, see -k"
    raise NoAnswer(f"no answer from {where} within {options.timeout:g} s{hint}")


def _exchange(sock: socket.socket, octets: bytes, options: Options) -> Iterator[bytes]:
    """Yield every datagram received until the timeout; retransmit meanwhile."""
    now = time.monotonic()
    until, again, wait = now + options.timeout, now, RETRANSMIT_INTERVAL
    while now < until:
        if now >= again:
            _show(options, "sent", octets)
            sock.send(octets)
            again, wait = now + wait, 1.0
        sock.settimeout(max(min(again, until) - now, 0.001))
        try:
            heard = sock.recv(MAX_SEALED + 1)
        except TimeoutError:
            pass
        else:
            _show(options, "received", heard)
            yield heard
        now = time.monotonic()


def _read(octets: bytes, key: bytes, nonce: bytes) -> Packet | None:
    """Return the reply to this request, or None: the genuine one may follow a forged one."""
    try:
        if key:
            sealed = unseal(octets, key)
            if sealed.direction is not Direction.ANSWER or sealed.nonce != nonce:
                return None
            octets = sealed.packet
        packet = decode(octets)
    except WireError:
        return None
    return packet if isinstance(packet, Packet) and packet.is_answer else None


def _show(options: Options, what: str, octets: bytes) -> None:
    if options.show_octets:
        print(f"{what} {len(octets)} octets: {octets.hex()}", file=sys.stderr)


def printable(text: str) -> str:
    """Replace control characters: a plugin's text may contain names chosen by subscribers."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


if __name__ == "__main__":
    sys.exit(main())
