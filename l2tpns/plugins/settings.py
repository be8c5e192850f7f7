"""Settings that plugins declare (manual: Plugins): their values, and the texts that the configuration has for them.

A setting is named PLUGIN_NAME. The configuration keeps the texts, so they survive the removal of a plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from l2tpns.config.file import owner
from l2tpns.config.settings import SETTINGS, Config
from l2tpns.config.value_types import Setting
from l2tpns.errors import ConfigError, PluginError
from l2tpns.plugins.server_api import Server, Variable
from l2tpns.runtime.log import Logger
from l2tpns.runtime.text import unknown_word


class PluginSettings:
    """The settings of all loaded plugins. No method yields.

    `servers` returns the Server of each loaded plugin, by name. `on_change` is called after each assignment.
    """

    def __init__(
        self, config: Config, log: Logger, servers: Callable[[], Mapping[str, Server]], on_change: Callable[[], None]
    ) -> None:
        self._config = config
        self._log = log
        self._servers = servers
        self._on_change = on_change
        self.in_transition: Server | None = None  # of a plugin being loaded or unloaded: it may log its secrets too

    @property
    def declared(self) -> dict[str, Setting]:
        """Return the declarations, by name."""
        return {name: variable.declared for name, variable in self._variables().items()}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Return the values that no log line may show."""
        servers = [*self._servers().values(), *([self.in_transition] if self.in_transition is not None else [])]
        secret = [v.value for server in servers for v in server._declared.variables.values() if v.declared.secret]
        words = [word for value in secret for word in (value if isinstance(value, tuple) else (value,))]
        return tuple(dict.fromkeys(word for word in words if isinstance(word, str) and word))

    def owns(self, name: str) -> bool:
        """Return whether a setting of this name can only belong to a loaded plugin."""
        return name not in SETTINGS and bool(owner(name, self._servers()))

    def assign(self, name: str, text: str) -> Setting:
        """Set a setting, and the configuration's text of it. Raises ConfigError, and nothing changes."""
        variable = self._variables().get(name)
        if variable is None:
            raise ConfigError(unknown_word("variable", name, tuple(self.declared)))
        declared = variable.declared
        try:
            variable.value = declared.parse(text)
        except ValueError as wrong:
            raise ConfigError(str(wrong)) from None
        config = self._config
        config.plugin_settings = {**config.plugin_settings, name: text}
        self._on_change()
        return declared

    def check(self, texts: Mapping[str, str], plugins: Iterable[str]) -> None:
        """Check these texts for the loaded plugins that are among `plugins`. Raises ConfigError."""
        for server in self._servers().values():
            if server.name in plugins:
                try:
                    self._parse(server, texts)
                except PluginError as error:
                    raise ConfigError(str(error)) from None

    def apply(self, server: Server) -> None:
        """Set the settings of one plugin to the texts of the configuration. Raises PluginError."""
        for name, value in self._parse(server, self._config.plugin_settings).items():
            server._declared.variables[name].value = value

    def apply_all(self) -> None:
        """Set the settings of all loaded plugins to the texts of the configuration. Log errors."""
        for server in self._servers().values():
            try:
                self.apply(server)
            except PluginError as error:  # possible at the start, when the plugin was not loaded for a check
                self._log.error("plugin_setting_refused", plugin=server.name, why=str(error))

    def _variables(self) -> dict[str, Variable[Any]]:
        return {
            name: variable
            for server in self._servers().values()
            for name, variable in server._declared.variables.items()
        }

    def _parse(self, server: Server, texts: Mapping[str, str]) -> dict[str, Any]:
        """Return the values of one plugin's settings, the default where there is no text. Raises PluginError."""
        variables = server._declared.variables
        values = {name: variable.declared.default for name, variable in variables.items()}
        others = {*self._config.plugins, server.name}
        for name, text in texts.items():
            if owner(name, others) != server.name:
                continue
            if name not in variables:
                raise PluginError(unknown_word("variable", name, tuple(variables)))
            try:
                values[name] = variables[name].declared.parse(text)
            except ValueError as wrong:
                raise PluginError(str(wrong)) from None
        return values
