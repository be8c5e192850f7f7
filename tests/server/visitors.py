"""Helpers for the tests of monitoring/: the service of a server in this process, and an HTTP client."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
from gevent import socket as sockets
from prometheus_client.parser import text_string_to_metric_families

from l2tpns.config.settings import Config
from l2tpns.monitoring.service import MonitoringService, MonitoringTiming
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.settings import RadiusSettings
from tests.lab import PATIENCE
from tests.lab.inprocess import LOOPBACK, InProcess

SERVED = {"metrics_bind_address": LOOPBACK, "metrics_port": 0}  # any free port


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Visitor:
    """An HTTP client that opens a connection for each request."""

    figures: MonitoringService

    def connect(self) -> Any:
        assert self.figures.address is not None, "not served"
        sock = sockets.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(PATIENCE)
        sock.connect(self.figures.address)
        return sock

    def send(self, request: bytes) -> bytes:
        """Send raw octets. Return everything until the connection is closed."""
        sock = self.connect()
        try:
            sock.sendall(request)
            answer = b""
            while octets := sock.recv(65536):
                answer += octets
            return answer
        finally:
            sock.close()

    def ask(self, path: str = "/", *, method: str = "GET", host: str = "localhost", **headers: str) -> Answer:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *(f"{name}: {text}" for name, text in headers.items())]
        head, _, body = self.send(("\r\n".join(lines) + "\r\n\r\n").encode()).partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        return Answer(int(status.split()[1]), dict(field.split(": ", 1) for field in fields), body.decode())

    def metrics(self) -> dict[str, float]:
        """Return the samples by name and labels, as in Prometheus: `l2tpns_drops_total{reason="tap"}`."""
        found = {}
        for family in text_string_to_metric_families(self.ask("/metrics").body):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
        return found


@contextmanager
def figures_of(
    server: InProcess,
    accounting: Accounting | None = None,
    *,
    running: bool = False,
    timing: MonitoringTiming | None = None,
) -> Iterator[Visitor]:
    """Serve the pages; with `running`, run the measurements as the daemon does."""
    log = server.log.get()
    figures = MonitoringService(server.core, accounting or unused_accounting(server.config, server), log, timing)
    if running:
        figures.start()
    else:
        figures.apply_config()
    try:
        yield Visitor(figures)
    finally:
        figures.stop()
        gevent.sleep(0)


def unused_accounting(config: Config, server: InProcess) -> Accounting:
    """Return an Accounting that never touches the disk."""
    return Accounting(RadiusSettings.from_config(config), Path("/nonexistent"), server.log.get())
