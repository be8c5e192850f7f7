"""Which backend decides logins: RADIUS where a server is configured, else the secrets file."""

from __future__ import annotations

from pathlib import Path

from l2tpns.config.settings import Config
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.secrets_file import SecretsBackend
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.types import Backend
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor


class Backends:
    """Both backends of a daemon, each created when it is first needed."""

    def __init__(
        self, config: Config, secrets_file: Path, log: Logger, *, awake: AwakeClock, supervisor: Supervisor
    ) -> None:
        self._config = config
        self._secrets_file = secrets_file
        self._log = log
        self._awake = awake
        self._supervisor = supervisor
        self._radius: RadiusBackend | None = None
        self._secrets: SecretsBackend | None = None

    def choose(self, settings: RadiusSettings) -> Backend:
        """Return the backend for these settings, with its settings or its file read again. Raises ConfigError."""
        if settings.servers:
            if self._radius is None:
                self._radius = RadiusBackend(settings, self._log, awake=self._awake, supervisor=self._supervisor)
            else:
                self._radius.configure(settings)
            return self._radius
        if self._secrets is None:
            self._secrets = SecretsBackend(self._secrets_file, self._config.hostname, self._log)
        else:
            self._secrets.reload()
        return self._secrets

    def close(self) -> None:
        """Close the sockets of RADIUS authentication, if they were opened."""
        if self._radius is not None:
            self._radius.close()
