"""What console commands may use: parts of the running server, and actions that the daemon provides."""

from __future__ import annotations

import grp
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from l2tpns.config import file as configfile
from l2tpns.config.access_list import AccessList
from l2tpns.config.settings import Config
from l2tpns.config.value_types import Setting
from l2tpns.errors import ConfigError
from l2tpns.lns import Lns
from l2tpns.plugins.manager import Plugins
from l2tpns.runtime.files import replace_file
from l2tpns.runtime.log import Log
from l2tpns.server import Server


@dataclass(slots=True)
class ConsoleContext:
    """The context of all consoles of a server."""

    server: Server
    log: Log
    files: configfile.Files
    started: float  # monotonic
    intended: Callable[[], Config]  # as `write memory` writes it, including values that await a restart
    # Set a variable and apply it. Return the variable and messages. Raises ConfigError.
    assign: Callable[[str, str], tuple[Setting, tuple[str, ...]]]
    reload: Callable[[], tuple[str, ...]]  # as SIGHUP; returns messages, raises ConfigError if nothing was changed
    leave: Callable[[], None]  # as SIGTERM
    bandwidth: Callable[[], str]  # returns the bandwidth line of the last second
    lag: Callable[[], tuple[float, float]]  # of the event loop in the last minute: 99th percentile, maximum, in seconds
    counters_cleared: float = 0.0  # monotonic; 0: never

    @property
    def lns(self) -> Lns:
        return self.server.lns

    @property
    def plugins(self) -> Plugins:
        return self.server.plugins

    @property
    def config(self) -> Config:
        return self.lns.config

    def running_config(self) -> str:
        return configfile.running_config(self.intended())

    def write_memory(self) -> Path:
        """Replace the configuration file by the running configuration. Raises ConfigError on failure."""
        path = self.files.config.resolve()
        try:
            replace_file(path, self.running_config().encode("utf-8", "surrogateescape"))
        except PermissionError as error:
            hint = _how_to_allow(path.parent) if os.geteuid() else ""
            raise ConfigError(f"{path}: {error.strerror}{hint}") from None
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        return path

    def set_variable(self, name: str, text: str) -> tuple[Setting, tuple[str, ...]]:
        """Set a variable of the server or of a plugin. Raises ConfigError."""
        plugins = self.plugins
        return (plugins.settings.assign(name, text), ()) if plugins.settings.owns(name) else self.assign(name, text)

    def change_filters(self, filters: Mapping[str, AccessList]) -> None:
        """Replace all packet filters, also those applied to sessions."""
        self.config.filters = filters
        self.server.refresh_filters()

    def clear_counters(self) -> None:
        self.lns.counters.clear()
        self.plugins.clear_counts()
        self.counters_cleared = monotonic()


def _how_to_allow(directory: Path) -> str:
    """Return how root lets the user of `setuid` write to the directory of the configuration."""
    gid = os.getegid()
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    return (
        "; the server is not root (setuid): edit the file as root, and reload; or let the server write it: "
        f"chgrp {group} {directory} && chmod g+rwx {directory} (docs/privileges.md says what that risks)"
    )
