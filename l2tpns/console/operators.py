"""l2tpns.users: who may use the console. `NAME:PASSWORD` a line, `#` comments; `enable` is the enable password.

A password stands in clear text (manual) or as a hash of crypt(3): `$6$`, `$y$` and whatever else the C library knows.
The thirteen characters of traditional crypt could be either, so both are tried. The file is read at each login: a
change needs no reload. Without the file everybody may come in; one that cannot be read lets nobody in.

Hashing costs up to 20 ms in which nothing else runs (crypt_r keeps the interpreter's lock), so it is done for one
login at a time, and a wrong password makes the next one wait. Those who wait are served owner by owner: an address or
a local user that tries passwords all the time delays an operator elsewhere by one try.
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
from l2tpns.runtime.log import Logger
from l2tpns.runtime.share import OneAtATime
from l2tpns.runtime.text_file import oddity, read_lines

ENABLE = "enable"
MAX_PASSWORD = 256  # octets; a longer one is wrong

_HASH = re.compile(r"\$[0-9a-z]+\$.+", re.ASCII | re.DOTALL)
_TRADITIONAL = re.compile(r"[./0-9A-Za-z]{13}", re.ASCII)


@dataclass(frozen=True, slots=True)
class UserFile:
    """The file at one moment. `exists` is False when there is none, `broken` says why it cannot be used."""

    exists: bool
    passwords: dict[str, str]
    enable: str | None = None
    broken: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def open(self) -> bool:
        """Nobody is asked for a name: there is no file, or it has nothing but an enable password."""
        return not self.broken and not self.passwords and (not self.exists or self.enable is not None)


class Users:
    """Checks names and passwords against the file."""

    def __init__(self, path: Path, log: Logger, delay: float = ConsoleTiming().password_check) -> None:
        """`delay`: seconds after a wrong password before the next one is checked."""
        self._path = path
        self._log = log
        self._delay = delay
        self._turn = OneAtATime()

    def read(self) -> UserFile:
        try:
            lines = read_lines(self._path)
            readable = self._path.stat().st_mode & 0o077
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
                warnings.append(f"{where}: is not NAME:PASSWORD")  # never the line: it may be a password
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
        """Whether this is the password of this user. An unknown name takes as long as a known one."""
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
    """Compare a password with that of the file, taking as long however much of it is right."""
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
    """crypt(3) says `*0` or `*1`, or nothing, where it does not know the kind of hash."""
    try:
        found = crypt_r.crypt(password, wanted)
    except (OSError, ValueError, UnicodeError):
        return False
    return bool(found) and not found.startswith("*") and hmac.compare_digest(found.encode(), wanted.encode())
