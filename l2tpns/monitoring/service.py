"""Runs the measurements all the time, and the HTTP server while metrics_bind_address is set.

A change of address or port takes effect within a second. If the address is unavailable, the server logs an error and
retries; it does not exit.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import gevent

from l2tpns.monitoring.http import CONNECTION_TIMEOUT, Application, BoundedServer
from l2tpns.monitoring.samples import PERIOD, Samples
from l2tpns.monitoring.sources import Sources
from l2tpns.radius.accounting import Accounting
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Part
from l2tpns.server import Server


@dataclass(frozen=True, slots=True)
class MonitoringTiming:
    """Times in seconds. Tests pass shorter ones."""

    config_poll: float = 1.0  # between two checks of the configuration
    listen_retry: float = 10.0  # between two attempts to listen
    connection: float = CONNECTION_TIMEOUT  # for a request and its answer


class MonitoringService:
    """Owns the lag meter, the samples of the last hour and the HTTP server."""

    def __init__(
        self, server: Server, accounting: Accounting, log: Logger, timing: MonitoringTiming | None = None
    ) -> None:
        self._timing = timing or MonitoringTiming()
        self.sources = Sources(server, accounting)
        self.samples = Samples(self.sources)
        self._log = log
        self._server: BoundedServer | None = None
        self._wanted: tuple[str, int] | None = None
        self._retry_at = 0.0
        self._parts: list[Part] = []

    def start(self) -> None:
        self.apply_config()
        spawn = self.sources.lns.services.supervisor.spawn
        self._parts = [spawn("loop meter", self.sources.lag.run), spawn("figures", self._run)]

    def stop(self) -> None:
        for part in self._parts:
            part.stop()
        self._close()

    @property
    def address(self) -> tuple[str, int] | None:
        """The address served, or None."""
        return None if self._server is None else (self._server.server_host, self._server.server_port)

    def _run(self) -> None:
        due = monotonic() + PERIOD
        while True:
            gevent.sleep(self._timing.config_poll)
            try:
                self.apply_config()
                self.sources.problems()
                if monotonic() >= due:
                    due += PERIOD * max(1, int((monotonic() - due) / PERIOD) + 1)
                    self.samples.take()
            except Exception:  # a fault here must not stop the measurements
                self._log.exception("figures_failed")

    def apply_config(self) -> None:
        """Serve the configured address, or none."""
        config = self.sources.lns.config
        address = config.metrics_bind_address
        wanted = None if address is None else (str(address), config.metrics_port)
        if self._server is not None and self._server.broken:
            self._close()
            self._log.error("figures_not_served", address=f"{address}:{config.metrics_port}", why="the socket failed")
        if wanted != self._wanted:
            self._close()
            self._wanted, self._retry_at = wanted, 0.0
        if wanted is None or address is None or self._server is not None or monotonic() < self._retry_at:
            return
        application = Application(self.sources, self.samples, self._log)
        server = BoundedServer(
            wanted, application, self.sources.lns.services.operator_scheduler, self._log, self._timing.connection
        )
        try:
            server.start()
        except OSError as error:
            if not self._retry_at:
                self._log.error("figures_not_served", address=f"{wanted[0]}:{wanted[1]}", why=error.strerror)
            self._retry_at = monotonic() + self._timing.listen_retry
            return
        self._server = server
        self._log.info("figures_served", address=f"{wanted[0]}:{wanted[1]}")
        if not address.is_loopback:
            self._log.warning(
                "figures_unprotected", why="any host that reaches metrics_bind_address can see all subscribers"
            )

    def _close(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.close_all()
            self._log.info("figures_no_longer_served")
