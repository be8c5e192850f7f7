"""The HTTP server of /metrics, /health and the status page, with bounds on connections and on time.

Each connection carries one request, which is read and answered within CONNECTION_TIMEOUT, in turns of a millisecond
(`Scheduler`). Pages are rendered one at a time, in slices: many visitors take no more of the data path's time than one.
To admit more than MAX_CONNECTIONS, the source (an address or a local user) with the most loses its oldest connection.

All pages are read-only and need no login: a client that reaches the address sees everything. Web pages of others must
not be able to make an operator's browser ask here: see `RequestCheck`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from time import monotonic
from typing import Any
from urllib.parse import parse_qs

import gevent
import orjson
from gevent import socket
from gevent.pywsgi import WSGIHandler, WSGIServer

from l2tpns import __version__
from l2tpns.monitoring.hosts import RequestCheck
from l2tpns.monitoring.problems import Problem
from l2tpns.monitoring.prometheus import Metrics
from l2tpns.monitoring.samples import Samples
from l2tpns.monitoring.sources import Sources
from l2tpns.monitoring.status_page import MAX_QUERY, LastHour, Query, render
from l2tpns.runtime.acceptor import Acceptor
from l2tpns.runtime.clock import moment
from l2tpns.runtime.connection_slots import ConnectionSlot, ConnectionSlots
from l2tpns.runtime.log import Logger
from l2tpns.runtime.scheduler import FairLock, Scheduler
from l2tpns.system.socket_owner import owner_of_connection

MAX_CONNECTIONS = 512  # so that a flood of 1,000 per second leaves a client half a second to send its request
BACKLOG = 256
CONNECTION_TIMEOUT = 20.0  # seconds
REQUEST_OCTETS = 16_384  # of a request line and its headers
REQUEST_LINES = 128
OWNER = "l2tpns.owner"  # key in the environ of a request: the source that it is attributed to
MAX_PAGE = 100_000
MAX_HOST_NAME = 253  # characters of a host name in the log
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
    ("Connection", "close"),
)
TEXT = "text/plain; charset=utf-8"

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    content_type: str = TEXT
    status: str = "200 OK"


def static(name: str, content_type: str) -> Response:
    """Return a file of this package."""
    return Response((files(__package__) / name).read_bytes(), content_type)


# Read with the module: later the server may be a user who cannot read them (`setuid`).
STYLE = static("status.css", "text/css; charset=utf-8")
SCRIPT = static("status.js", "text/javascript; charset=utf-8")
NOT_FOUND = Response(b"not found\n", status="404 Not Found")
NOT_ALLOWED = Response(b"only GET and HEAD are supported\n", status="405 Method Not Allowed")
FAILED = Response(b"internal error: see the server's log\n", status="500 Internal Server Error")


class Application:
    """The WSGI application: maps paths to responses."""

    def __init__(self, sources: Sources, samples: Samples, log: Logger) -> None:
        self._sources = sources
        self.awake = sources.lns.services.awake
        self._last_hour = LastHour(samples)
        self._log = log
        self._check = RequestCheck(sources.lns.config)
        self._metrics = Metrics(sources)
        self._turn = FairLock()
        self._paths: dict[str, Callable[[Environ], Response]] = {
            "/": self.page,
            "/metrics": self.metrics,
            "/health": self.health,
            "/status.css": lambda _: STYLE,
            "/status.js": lambda _: SCRIPT,
            "/favicon.ico": lambda _: Response(b"", "image/x-icon"),
        }

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            response = self.respond(environ)
        except Exception:
            self._log.exception("figures_failed", path=environ.get("PATH_INFO"))
            response = FAILED
        start_response(response.status, [("Content-Type", response.content_type), *HEADERS])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else response.body]

    def respond(self, environ: Environ) -> Response:
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return NOT_ALLOWED
        refusal = self._check.refusal(environ)
        if refusal is not None:
            status, why = refusal
            host, origin = (environ.get(name, "")[:MAX_HOST_NAME] for name in ("HTTP_HOST", "HTTP_ORIGIN"))
            self._log.warning_limited(
                "figures_refused", peer=environ.get("REMOTE_ADDR", ""), host=host, origin=origin, why=why
            )
            return Response(f"{why}\n".encode(), status=status)
        answer = self._paths.get(environ["PATH_INFO"])
        return NOT_FOUND if answer is None else answer(environ)

    def page(self, environ: Environ) -> Response:
        with self._turn.hold(environ.get(OWNER, "")):
            text = "".join(render(self._sources, self._last_hour, parse_query(environ.get("QUERY_STRING", ""))))
        return Response(text.encode("utf-8", "replace"), "text/html; charset=utf-8")

    def metrics(self, environ: Environ) -> Response:
        with self._turn.hold(environ.get(OWNER, "")):
            body, content_type = self._metrics.text(environ.get("HTTP_ACCEPT", ""))
        return Response(body, content_type)

    def health(self, environ: Environ) -> Response:
        """Return 503 while the server shuts down or a component does not run: a restart repairs no other problem."""
        lns = self._sources.lns
        problems = self._sources.problems()
        down = lns.services.supervisor.down()
        facts = {
            "status": "leaving"
            if lns.admission.shutting_down
            else "failing"
            if down
            else "degraded"
            if problems
            else "ok",
            "problems": [problem.text for problem in problems],
            "standing": [problem_facts(problem) for problem in problems],
            "down": down,
            "version": __version__,
            "uptime": int(monotonic() - self._sources.started),
            "tunnels": len(lns.tunnels),
            "sessions": len(lns.sessions),
            "online": len(lns.services.registry.by_address),
        }
        status = "503 Service Unavailable" if lns.admission.shutting_down or down else "200 OK"
        return Response(orjson.dumps(facts) + b"\n", "application/json", status)


def problem_facts(problem: Problem) -> dict[str, str]:
    """Return a problem for programs, with `since` as an ISO 8601 date."""
    since = datetime.fromtimestamp(moment().wall - (monotonic() - problem.since), UTC)
    return {
        "name": problem.name,
        "subject": problem.subject,
        "text": problem.text,
        "remedy": problem.remedy,
        "since": since.isoformat(timespec="seconds").replace("+00:00", "Z"),
    }


def parse_query(text: str) -> Query:
    """Parse the query of a URL. Invalid parts are ignored."""
    try:
        fields = parse_qs(text, max_num_fields=10)
    except ValueError:
        return Query()
    page = fields.get("page", ["1"])[0]
    number = int(page) if page.isascii() and page.isdigit() and len(page) < 8 else 1
    return Query(fields.get("q", [""])[0][:MAX_QUERY].strip(), min(max(number, 1), MAX_PAGE))


# The server


class RequestHead:
    """A connection's file that ends after REQUEST_OCTETS or REQUEST_LINES, to bound the head of a request."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._left = REQUEST_OCTETS
        self._lines = REQUEST_LINES

    def readline(self, size: int = -1) -> bytes:
        self._lines -= 1
        if self._lines < 0:
            return b""
        line: bytes = self._file.readline(min(size, self._left) if size >= 0 else self._left)
        self._left -= len(line)
        return line

    def read(self, size: int = -1) -> bytes:
        octets: bytes = self._file.read(min(size, self._left) if size >= 0 else self._left)
        self._left -= len(octets)
        return octets

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    def close(self) -> None:
        self._file.close()


class OneRequest(WSGIHandler):  # type: ignore[misc]
    """Handles the single request of a connection within the time limit."""

    def __init__(self, sock: Any, address: Any, server: Any, place: ConnectionSlot) -> None:
        super().__init__(sock, address, server, RequestHead(sock.makefile("rb", -1)))
        self._place = place

    def handle(self) -> None:
        with suppress(gevent.Timeout), self.server.awake.timeout(self.server.connection_timeout):
            super().handle()

    def read_request(self, raw_requestline: str) -> bool:
        readable: bool = super().read_request(raw_requestline)
        self._place.active = readable
        self.close_connection = True
        return readable

    def handle_one_response(self) -> None:
        self.server.share.wait_turn(self._place.owner)
        super().handle_one_response()

    def get_environ(self) -> Environ:
        environ: Environ = super().get_environ()
        environ[OWNER] = self._place.owner
        return environ

    def handle_error(self, kind: Any, error: Any, trace: Any) -> None:
        """Close the connection: it timed out or was evicted. The application itself raises nothing."""
        self.close_connection = True

    def _handle_client_error(self, error: Exception) -> tuple[str, bytes]:
        """Return a 400 reply. gevent's default would write a traceback to standard error."""
        return "400", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedServer(WSGIServer):  # type: ignore[misc]
    """A WSGI server with at most MAX_CONNECTIONS. `start` raises OSError."""

    def __init__(
        self,
        address: tuple[str, int],
        application: Application,
        share: Scheduler,
        log: Logger,
        connection_timeout: float = CONNECTION_TIMEOUT,
    ) -> None:
        super().__init__(
            address,
            application,
            log=None,
            error_log=None,
            environ={"SERVER_NAME": address[0]},  # else it would block on a DNS query for the name
        )
        self.awake = application.awake
        self.connection_timeout = connection_timeout
        self._wanted = address
        self.share = share
        self._log = log
        self._door: Acceptor | None = None
        self.connections = ConnectionSlots(lambda: MAX_CONNECTIONS)

    def init_socket(self) -> None:
        """Create the listening socket, which `start_accepting` hands to an Acceptor."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(self._wanted)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
        self.socket = listener
        self.address = listener.getsockname()
        self.update_environ()

    def start_accepting(self) -> None:
        """Accept through an Acceptor: gevent's own loop has no limit per source."""
        self._door = Acceptor(
            self.socket, self.connections, self.share, self._log, owner_of_connection, self._serve, _hang_up
        )
        self._door.start()

    @property
    def broken(self) -> bool:
        """Return True when the listening socket has failed."""
        return self._door is not None and self._door.broken

    def stop_accepting(self) -> None:
        if self._door is not None:
            self._door.close()

    def _serve(self, sock: Any, peer: tuple[str, int], place: ConnectionSlot) -> None:
        OneRequest(sock, peer, self, place).handle()

    def close_all(self) -> None:
        """Close the listening socket and all connections."""
        self.stop(timeout=0)


def _hang_up(sock: Any, peer: tuple[str, int]) -> None:
    """Never called: no place is reserved here, so an old connection can always be evicted."""
