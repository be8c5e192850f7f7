"""Run Debian's FreeRADIUS as a process of the test, with a minimal configuration.

    with FreeRadius(users='alice Cleartext-Password := "secret"\n\tFramed-IP-Address = 10.0.0.5\n') as radius:
        radius.port                  # authentication; accounting is on the next one
        radius.records()             # what its detail file holds, one dict per record
        radius.kill(); radius.start()

Needs the package freeradius; any user may run it. `prefix` runs it elsewhere, as ("ip", "netns", "exec", "name").
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import PATIENCE
from tests.lab.radius_server import bind_pair

PROGRAM = "/usr/sbin/freeradius"

CONFIGURATION = """
prefix = /usr
logdir = {root}
run_dir = {root}
raddbdir = {root}
libdir = /usr/lib/freeradius
pidfile = {root}/pid
max_requests = 65536
cleanup_delay = 10
log {{
    destination = files
    file = {root}/radius.log
    auth = yes
}}
security {{
    allow_core_dumps = no
    max_attributes = 200
    reject_delay = 0
    status_server = no
}}
client lab {{
    ipaddr = {clients}
    secret = {secret}
    require_message_authenticator = yes
}}
thread pool {{
    start_servers = 2
    max_servers = 4
    min_spare_servers = 1
    max_spare_servers = 4
    max_queue_size = 65536
}}
modules {{
    pap {{
    }}
    chap {{
    }}
    mschap {{
    }}
    files {{
        usersfile = {root}/users
    }}
    detail {{
        filename = {root}/detail
        permissions = 0600
        header = "%t"
        locking = no
    }}
    always ok {{
        rcode = ok
    }}
}}
server lab {{
    listen {{
        type = auth
        ipaddr = {host}
        port = {port}
    }}
    listen {{
        type = acct
        ipaddr = {host}
        port = {accounting_port}
    }}
    authorize {{
        chap
        mschap
        files
        pap
    }}
    authenticate {{
        Auth-Type PAP {{
            pap
        }}
        Auth-Type CHAP {{
            chap
        }}
        Auth-Type MS-CHAP {{
            mschap
        }}
    }}
    post-auth {{
        {sign}
        Post-Auth-Type REJECT {{
            {sign}
        }}
    }}
    preacct {{
        ok
    }}
    accounting {{
        detail
    }}
}}
"""
SIGN = """update reply {
            &Message-Authenticator := 0x00
        }"""


class FreeRadiusFailed(Exception):
    """Report that FreeRADIUS did not start or has exited. The text is the end of its log."""


def installed() -> bool:
    return os.access(PROGRAM, os.X_OK)


class FreeRadius:
    """Run one server. Its directory is removed at the end."""

    def __init__(
        self,
        users: str,
        *,
        secret: str = "testing123",
        host: str = "127.0.0.1",
        port: int = 0,
        clients: str = "0.0.0.0/0",
        sign: bool = True,
        prefix: tuple[str, ...] = (),
    ) -> None:
        self.secret = secret
        self.host = host
        self.port = port or free_port_pair(host if not prefix else "127.0.0.1")
        self._clients = clients
        self._prefix = prefix
        self._process: subprocess.Popen[bytes] | None = None
        self._halted = False
        self.root = Path(tempfile.mkdtemp(prefix="freeradius-"))
        (self.root / "dictionary").write_text("")
        (self.root / "users").write_text(users)
        (self.root / "radiusd.conf").write_text(
            CONFIGURATION.format(
                root=self.root,
                clients=clients,
                secret=secret,
                host=host,
                port=self.port,
                accounting_port=self.port + 1,
                sign=SIGN if sign else "ok",
            )
        )
        # FreeRADIUS warns, and some builds refuse to start, when other users may read the secrets.
        for path in self.root.iterdir():
            path.chmod(0o600)

    # --- life

    def start(self, patience: float = PATIENCE) -> Self:
        log = self.root / "radius.log"
        seen = log.stat().st_size if log.exists() else 0
        with open(self.root / "output", "ab") as output:
            command = [*self._prefix, PROGRAM, "-f", "-n", "radiusd", "-d", str(self.root)]
            self._process = subprocess.Popen(command, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + patience
        while True:
            if log.exists() and "Ready to process requests" in log.read_text(errors="replace")[seen:]:
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                output_text = (self.root / "output").read_text(errors="replace")
                raise FreeRadiusFailed(
                    (output_text + (log.read_text(errors="replace") if log.exists() else ""))[-3000:]
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop the server gracefully."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server, as a crash would."""
        self._end(signal.SIGKILL)

    def halt(self) -> None:
        """Suspend the server: it keeps its sockets and does nothing, like a machine that hangs."""
        self._signal(signal.SIGSTOP)
        self._halted = True

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)
        self._halted = False

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.root, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        if self._halted:
            self.go_on()
        self._signal(number)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    # --- what it saw

    def records(self, status: str = "") -> list[dict[str, str | list[str]]]:
        """Return a dict per record of the detail file. An attribute that came several times has a list."""
        path = self.root / "detail"
        if not path.exists():
            return []
        records: list[dict[str, str | list[str]]] = []
        for block in path.read_text(errors="replace").split("\n\n"):
            record: dict[str, str | list[str]] = {}
            for line in block.splitlines():
                name, equals, value = line.strip().partition(" = ")
                if not line.startswith("\t") or not equals:
                    continue
                value = value.strip('"')
                old = record.get(name)
                record[name] = value if old is None else [*([old] if isinstance(old, str) else old), value]
            if record and (not status or record.get("Acct-Status-Type") == status):
                records.append(record)
        return records

    def log(self) -> str:
        path = self.root / "radius.log"
        return path.read_text(errors="replace") if path.exists() else ""


def free_port_pair(host: str) -> int:
    sockets = bind_pair(host)
    port: int = sockets[0].getsockname()[1]
    for sock in sockets:
        sock.close()
    return port
