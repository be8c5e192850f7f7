"""The configuration of a running server: the file read, checked whole and adopted; variables set at the console.

One Config object is changed in place, so that all parts that hold it see the change; `apply` tells those that keep a
copy. A change that is refused leaves everything as it was. The variables are declared in settings.py.
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
from l2tpns.config.value_types import Affects, Effect, Setting
from l2tpns.errors import ConfigError
from l2tpns.runtime import files
from l2tpns.runtime.log import Log


@dataclass(frozen=True, slots=True)
class Options:
    """The command line; it overrides the file."""

    config: Path
    detach: bool = False
    verbose: int = 0
    hostname: str | None = None
    address: str | None = None

    def overrides(self) -> dict[str, Any]:
        """Return the variables set on the command line. Raises ConfigError."""
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
    """A file that was read: its configuration, its warnings, and its own values where the command line overrides."""

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
    """Return the directories that the server writes to, by the variable that names them."""
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

    `apply(radius)` passes the configuration on, to RADIUS too if `radius` is set; it raises ConfigError when no
    subscriber could log in. `prepare` checks what a configuration names outside itself, the pool of addresses; it
    raises ConfigError, or returns a function that adopts it. `check_usage_directory` returns why usage files cannot be
    written to a directory, or an empty string.
    """

    def __init__(
        self,
        options: Options,
        reading: Reading,
        log: Log,
        apply: Callable[[bool], None],
        prepare: Callable[[Config], Callable[[], None]],
        check_usage_directory: Callable[[str], str],
    ) -> None:
        self.config = reading.config
        self.warnings = reading.warnings
        self._options = options
        self._in_file = reading.in_file
        self._pending: dict[str, Any] = {}  # variables that wait for a restart, with the value they will have
        self._changing = RLock()  # the console and HUP may come together
        self._log = log
        self._apply = apply
        self._prepare = prepare
        self._check_usage_directory = check_usage_directory

    def intended(self) -> Config:
        """Return what `write memory` writes: with changes that wait for a restart, without the command line."""
        return replace(self.config, **{**self._pending, **self._in_file})

    def config_warnings(self) -> tuple[str, ...]:
        """Log, at the start, what is in the file and has no effect or is unsafe. Return the same as text."""
        return self._config_warnings(self.warnings, self.config)

    # Changes

    def reload(self) -> tuple[str, ...]:
        """Read the file and adopt it. Return what the operator should know.

        Raises ConfigError when the file is refused; then nothing has changed.
        """
        with self._changing:
            self._log.reopen()
            reading = read(self._options)
            config = reading.config
            adopt_others = self._prepare(config)
            pending = {}
            for name in self.config.differences(config):
                if name in SETTINGS and SETTINGS[name].effect is Effect.RESTART:
                    pending[name] = getattr(config, name)
                    config = replace(config, **{name: getattr(self.config, name)})
            changed = self._adopt(config, radius=True)
            self._pending, self._in_file = pending, reading.in_file
            adopt_others()
            notes = self._config_warnings(reading.warnings, reading.config)
            log = self._log.get()
            for name in pending:
                log.warning("setting_needs_restart", variable=name)
                notes += (f"{name} takes effect {Effect.RESTART.value}",)
            log.info("reloaded", changed=list(changed))
            return (*notes, f"Changed: {', '.join(changed) or 'nothing'}")

    def assign(self, name: str, text: str) -> tuple[Setting, tuple[str, ...]]:
        """Set one variable, as the console does. Return its declaration and what the operator should know.

        Raises ConfigError when the value is refused; then nothing has changed.
        """
        with self._changing:
            before = self.intended()
            trial = replace(before)
            setting = trial.assign(name, text)
            value = getattr(trial, name)
            if setting.effect is Effect.RESTART:
                self._pending[name] = value
            else:
                self._adopt(replace(self.config, **{name: value}), radius=Affects.RADIUS in setting.affects)
            self._in_file.pop(name, None)
            known = before.without_effect()
            new = [pair for pair in trial.without_effect() if pair[0] == name or pair not in known]
            return setting, self._warn_without_effect(new)

    def _adopt(self, config: Config, *, radius: bool) -> tuple[str, ...]:
        """Copy `config` and pass it on. Return the names that changed. Raises ConfigError; then nothing has changed."""
        before = replace(self.config)
        moved = config.accounting_dir != before.accounting_dir
        why = self._check_usage_directory(config.accounting_dir) if moved else ""
        if why:
            raise ConfigError(f"accounting_dir: no file could be written to {config.accounting_dir}: {why}")
        self._open_logs(before, config)
        changed = self.config.take(config)
        try:
            self._apply(radius)
        except Exception:
            self.config.take(before)
            with suppress(ConfigError):  # of the secrets file: the secrets that were read before stay
                self._apply(radius)
            self._open_logs(config, before)
            raise
        return changed

    def _open_logs(self, before: Config, config: Config) -> None:
        """Move the log and the audit log to where `config` says. Raises ConfigError; then both stay where they are."""
        if config.audit_file != before.audit_file:
            self._log.open_audit(config.audit_file)
        if config.log_file != before.log_file:
            try:
                self._log.open(config.log_file)
            except ConfigError:
                self._log.open_audit(before.audit_file)
                raise

    # Warnings

    def _config_warnings(self, warnings: tuple[str, ...], config: Config) -> tuple[str, ...]:
        log = self._log.get()
        for warning in warnings:
            log.warning("config_ignored", why=warning)
        notes = (*warnings, *self._warn_without_effect(config.without_effect()))
        why = self._check_usage_directory(config.accounting_dir)
        if why:
            log.error("usage_file_failed", path=config.accounting_dir, why=why)
            notes += (f"accounting_dir: no file can be written to {config.accounting_dir}: {why}",)
        return (*notes, *self._warn_unsafe(config))

    def _warn_unsafe(self, config: Config) -> tuple[str, ...]:
        """Log directories in which other users can replace what the server writes, and secrets that all can read."""
        log, notes = self._log.get(), []
        for name, directory in _places(config, self._options.config):
            why = files.foreign(directory)
            if why:
                log.warning("place_unsafe", variable=name, path=str(directory), why=why)
                notes.append(f"{name}: {why}")
        known = configfile.find_files(self._options.config)
        # While the secrets file is in use, radius/secrets_file.py checks it.
        secret = [known.config] if config.secrets() else []
        for path in (*secret, known.users, *((known.secrets,) if config.radius_servers else ())):
            why = files.open_to_others(path)
            if why:
                log.warning("secrets_readable", path=str(path), why=why)
                notes.append(why)
        return tuple(notes)

    def _warn_without_effect(self, found: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> tuple[str, ...]:
        for name, why in found:
            self._log.get().warning("setting_without_effect", variable=name, why=why)
        return tuple(f"{name} has no effect: {why}" for name, why in found)
