"""The configuration of a running server: read from the file and checked whole, then taken up; variables set live.

One Config object is changed in place, so that everybody who holds it sees the change; whoever keeps a copy is told by
`apply`. What is refused leaves everything as it was. Which variable means what is config.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gevent.lock import RLock

from l2tpns.config import file as configfile
from l2tpns.config.settings import SETTINGS, Config
from l2tpns.config.value_types import Effect, Setting
from l2tpns.errors import ConfigError
from l2tpns.runtime import files
from l2tpns.runtime.log import Log
from l2tpns.subscriber.pool import Layout
from l2tpns.subscriber.usage_files import unusable

RADIUS_VARIABLES = ("radius", "bind_address", "bind_multi_address", "hostname")


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; it goes before the file."""

    config: Path
    detach: bool = False
    verbose: int = 0
    hostname: str | None = None
    address: str | None = None

    def overrides(self) -> dict[str, Any]:
        """Variables set on the command line. Raises ConfigError."""
        found: dict[str, Any] = {}
        for option, name, text in (("-h", "hostname", self.hostname), ("-a", "bind_address", self.address)):
            if text is not None:
                try:
                    found[name] = SETTINGS[name].parse(text)
                except ValueError as error:
                    raise ConfigError(f"{option}: {error}") from None
        return found


@dataclass(frozen=True, slots=True)
class Reading:
    """A file that was read: what it makes, what it warns of, its own words for what the command line goes before."""

    config: Config
    warnings: tuple[str, ...]
    in_file: dict[str, Any]


def read(options: Options) -> Reading:
    """Read and check the whole file. Raises ConfigError."""
    parsed = configfile.parse_file(options.config)
    overrides = options.overrides()
    config = configfile.make_config(parsed, overrides)
    covered = (*overrides, *(("debug",) if options.verbose else ()))
    in_file = {name: parsed.values.get(name, SETTINGS[name].default) for name in covered}
    config.debug = min(config.debug + options.verbose, 5)
    return Reading(config, parsed.warnings, in_file)


def _places(config: Config, config_file: Path) -> list[tuple[str, Path]]:
    """Directories that we write to, by the variable that names them."""
    log_file = config.log_file.removeprefix("file:")
    named = {"audit_file": config.audit_file, "pid_file": config.pid_file}
    if not config.log_file.startswith(("syslog:", "/dev/")):
        named["log_file"] = log_file
    found = [(name, Path(path).absolute().parent) for name, path in named.items() if path]
    for name in ("accounting_dir", "spool_dir", "state_dir"):
        if path := getattr(config, name):
            found.append((name, Path(path)))
    return [*found, ("write memory", config_file.resolve().parent)]


class Configurator:
    """Changes `config`, one change at a time.

    `apply(radius)` hands on what it says now, `radius` when that may concern RADIUS; it raises ConfigError when nobody
    could log in. `read_pool` makes the addresses that go with a configuration (or ConfigError), `take_pool` gives them
    out.
    """

    def __init__(
        self,
        options: Options,
        reading: Reading,
        log: Log,
        apply: Callable[[bool], None],
        read_pool: Callable[[Config], Layout],
        take_pool: Callable[[Layout], None],
    ) -> None:
        self.config = reading.config
        self.warnings = reading.warnings
        self._options = options
        self._in_file = reading.in_file
        self._pending: dict[str, Any] = {}  # variables that wait for a restart, with the value they will have
        self._changing = RLock()  # the console and HUP may come together
        self._log = log
        self._apply = apply
        self._read_pool = read_pool
        self._take_pool = take_pool

    def intended(self) -> Config:
        """As `write memory` writes it: with what waits for a restart, without what the command line has put over it."""
        return replace(self.config, **{**self._pending, **self._in_file})

    def doubts(self) -> tuple[str, ...]:
        """At the start: what stands in the file and will not do what it says, into the log."""
        return self._doubts(self.warnings, self.config)

    # Changes

    def reload(self) -> tuple[str, ...]:
        """Go by the file from now on; what there is to say. ConfigError when it is refused, nothing being changed."""
        with self._changing:
            self._log.reopen()
            reading = read(self._options)
            config = reading.config
            layout = self._read_pool(config)
            pending = {}
            for name in self.config.differences(config):
                if name in SETTINGS and SETTINGS[name].effect is Effect.RESTART:
                    pending[name] = getattr(config, name)
                    config = replace(config, **{name: getattr(self.config, name)})
            changed = self._adopt(config, radius=True)
            self._pending, self._in_file = pending, reading.in_file
            self._take_pool(layout)
            told = self._doubts(reading.warnings, reading.config)
            log = self._log.get()
            for name in pending:
                log.warning("setting_needs_restart", variable=name)
                told += (f"{name} takes effect {Effect.RESTART.value}",)
            log.info("reloaded", changed=list(changed))
            return (*told, f"Changed: {', '.join(changed) or 'nothing'}")

    def assign(self, name: str, text: str) -> tuple[Setting, tuple[str, ...]]:
        """Set one variable, as the console does; what there is to say. ConfigError leaves everything as it was."""
        with self._changing:
            before = self.intended()
            trial = replace(before)
            setting = trial.assign(name, text)
            value = getattr(trial, name)
            if setting.effect is Effect.RESTART:
                self._pending[name] = value
            else:
                radius = any(word in name for word in RADIUS_VARIABLES)
                self._adopt(replace(self.config, **{name: value}), radius=radius)
            self._in_file.pop(name, None)
            known = before.without_effect()
            new = [doubt for doubt in trial.without_effect() if doubt[0] == name or doubt not in known]
            return setting, self._say_without_effect(new)

    def _adopt(self, config: Config, *, radius: bool) -> tuple[str, ...]:
        """Become as `config` and hand it on; the names that changed. ConfigError leaves everything as it was."""
        before = replace(self.config)
        why = unusable(config.accounting_dir) if config.accounting_dir != before.accounting_dir else ""
        if why:
            raise ConfigError(f"accounting_dir: no file could be written to {config.accounting_dir}: {why}")
        self._open_logs(before, config)
        changed = self.config.take(config)
        try:
            self._apply(radius)
        except Exception:
            self.config.take(before)
            with suppress(ConfigError):  # it was the secrets file: those that were read before still hold
                self._apply(radius)
            self._open_logs(config, before)
            raise
        return changed

    def _open_logs(self, before: Config, config: Config) -> None:
        """Log and audit log go on where `config` says. ConfigError leaves both where they are."""
        if config.audit_file != before.audit_file:
            self._log.open_audit(config.audit_file)
        if config.log_file != before.log_file:
            try:
                self._log.open(config.log_file)
            except ConfigError:
                self._log.open_audit(before.audit_file)
                raise

    # What there is to say

    def _doubts(self, warnings: tuple[str, ...], config: Config) -> tuple[str, ...]:
        log = self._log.get()
        for warning in warnings:
            log.warning("config_ignored", why=warning)
        told = (*warnings, *self._say_without_effect(config.without_effect()))
        why = unusable(config.accounting_dir)
        if why:
            log.error("usage_file_failed", path=config.accounting_dir, why=why)
            told += (f"accounting_dir: no file can be written to {config.accounting_dir}: {why}",)
        return (*told, *self._say_unsafe(config))

    def _say_unsafe(self, config: Config) -> tuple[str, ...]:
        """Directories in which others decide what stands where we write, and secrets that everybody can read."""
        log, told = self._log.get(), []
        for name, directory in _places(config, self._options.config):
            why = files.foreign(directory)
            if why:
                log.warning("place_unsafe", variable=name, path=str(directory), why=why)
                told.append(f"{name}: {why}")
        known = configfile.find_files(self._options.config)
        # The secrets file says so itself where it is read: see radius/secrets_file.py.
        secret = [known.config] if config.secrets() else []
        for path in (*secret, known.users, *((known.secrets,) if config.radius_servers else ())):
            why = files.open_to_others(path)
            if why:
                log.warning("secrets_readable", path=str(path), why=why)
                told.append(why)
        return tuple(told)

    def _say_without_effect(self, found: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> tuple[str, ...]:
        for name, why in found:
            self._log.get().warning("setting_without_effect", variable=name, why=why)
        return tuple(f"{name} moves nothing: {why}" for name, why in found)
