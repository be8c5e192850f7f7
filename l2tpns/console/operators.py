"""l2tpns.users: the operators and their passwords, one `NAME:PASSWORD` per line; `enable` is the enable password.

A password is in clear text (manual) or a crypt(3) hash: `$6$`, `$y$` or any other that the C library supports. Thirteen
characters could be a traditional crypt hash or clear text, so both are tried. Lines starting with `#` are comments. The
file is read at each login, so a change needs no reload. Without the file there is no login; if it is unreadable, all
logins are refused.

Hashing blocks the whole server for up to 20 ms (crypt_r holds the interpreter lock), so only one password is checked at
a time, with a delay after a wrong one. Waiting logins are served in turn by source: an address or local user that tries
passwords continuously delays other operators by one attempt.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from pathlib import Path

import crypt_r
import gevent

from l2tpns.console.timing import ConsoleTiming
from l2tpns.errors import ConfigError
from l2tpns.runtime import files
from l2tpns.runtime.log import Logger
from l2tpns.runtime.scheduler import FairLock
from l2tpns.runtime.text_file import oddity, read_lines

ENABLE = "enable"
MAX_PASSWORD = 256  # octets; a longer one is refused

_HASH = re.compile(r"\$[0-9a-z]+\$.+", re.ASCII | re.DOTALL)
_TRADITIONAL = re.compile(r"[./0-9A-Za-z]{13}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UserFile:
    """The contents of the file. `broken` is the reason why it cannot be used, else empty."""

    exists: bool
    passwords: dict[str, str]
    enable: str | None = None
    broken: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def open(self) -> bool:
        """Return True if no login is required: there is no file, or only an enable password in it."""
        return not self.broken and not self.passwords and (not self.exists or self.enable is not None)


class Operators:
    """Checks user names and passwords against the file."""

    def __init__(self, path: Path, log: Logger, delay: float = ConsoleTiming().password_check) -> None:
        """`delay`: seconds after a wrong password before the next one is checked."""
        self._path = path
        self._log = log
        self._delay = delay
        self._turn = FairLock()

    def read(self) -> UserFile:
        try:
            lines = read_lines(self._path)
            readable = files.beyond_own_group(self._path.stat())
        except FileNotFoundError:
            return UserFile(False, {})
        except OSError as error:
            return UserFile(True, {}, broken=f"{self._path}: {error.strerror}")
        except ConfigError as error:
            return UserFile(True, {}, broken=str(error))
        warnings = [f"{self._path} can be read by others than its owner"] if readable else []
        passwords: dict[str, str] = {}
        enable = None
        for line in lines:
            text, where = line.text, f"{self._path}:{line.number}"
            if not text.strip() or text.lstrip().startswith("#"):
                continue
            name, colon, password = text.partition(":")
            name = name.strip()
            if _HASH.fullmatch(password.rstrip()):
                password = password.rstrip()  # no hash ends in a blank
            if not colon or not name or not password:
                warnings.append(f"{where}: is not NAME:PASSWORD")  # without the text, which may be a password
                continue
            if password != password.rstrip():
                warnings.append(f"{where}: ends in a blank, which belongs to the password")
            elif odd := oddity(text):
                warnings.append(f"{where}: {odd}")
            if name == ENABLE:
                enable = password
            else:
                passwords[name] = password
        return UserFile(True, passwords, enable, warnings=tuple(warnings))

    def check(self, name: str, password: str, owner: str = "") -> bool:
        """Return True if the password is the user's. An unknown name takes as long as a known one. Yields."""
        users = self.read()
        if users.broken:
            self._log.error("console_users_unreadable", why=users.broken)
            return False
        known = users.passwords.get(name)
        right = self._matches(password, known or next(iter(users.passwords.values()), ""), owner)
        return right and known is not None

    def check_enable(self, password: str, owner: str = "") -> bool:
        users = self.read()
        if users.broken:
            self._log.error("console_users_unreadable", why=users.broken)
            return False
        return users.enable is not None and self._matches(password, users.enable, owner)

    def _matches(self, password: str, wanted: str, owner: str) -> bool:
        with self._turn.hold(owner):
            right = matches(password, wanted)
            if not right:
                gevent.sleep(self._delay)
            return right


def matches(password: str, wanted: str) -> bool:
    """Compare a password with the file's in constant time. Blocks the process for a hash."""
    given = password.encode("utf-8", "surrogateescape")
    if not wanted or "\0" in password or len(given) > MAX_PASSWORD:
        return False
    if _HASH.fullmatch(wanted):
        return _hash_matches(password, wanted)
    right = hmac.compare_digest(given, wanted.encode("utf-8", "surrogateescape"))
    if _TRADITIONAL.fullmatch(wanted):
        right |= _hash_matches(password, wanted)
    return right


def _hash_matches(password: str, wanted: str) -> bool:
    """Compare with a hash. crypt(3) returns `*0`, `*1` or nothing for an unknown kind of hash."""
    try:
        found = crypt_r.crypt(password, wanted)
    except (OSError, ValueError, UnicodeError):
        return False
    return bool(found) and not found.startswith("*") and hmac.compare_digest(found.encode(), wanted.encode())
