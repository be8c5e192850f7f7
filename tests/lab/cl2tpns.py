"""Run the C l2tpns of the Debian package in a namespace, for comparison in benchmarks and to prove that the lab works.

The package is unpacked, not installed, so it does not conflict with an installation of ours. Its paths in /etc are
compiled in: it runs in a mount namespace of its own, where /etc is a directory of the lab.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab.netns import CommandFailed, Namespace, end, run, wait_until
from tests.lab.server import ServerDied, Setting

PACKAGES = ("l2tpns", "libcli1.10")
ETC = ("group", "hosts", "ld.so.cache", "nsswitch.conf", "passwd", "protocols", "services")

# The server becomes the master of its cluster, and answers, after it has waited this long for another (unit: 0.1 s).
ALONE: dict[str, Setting] = {"cluster_interface": "lo", "cluster_hb_interval": 1, "cluster_hb_timeout": 10}


def unpack(directory: Path) -> Path:
    """Unpack the package below `directory`. It is downloaded once."""
    program = directory / "usr/sbin/l2tpns"
    if not program.exists():
        downloads = directory / "download"
        downloads.mkdir(parents=True, exist_ok=True)
        command = ["sh", "-c", f'cd "$0" && apt-get -q download {" ".join(PACKAGES)}', str(downloads)]
        try:
            run(*command, timeout=120)
        except CommandFailed:
            run("apt-get", "-q", "update", timeout=300)
            run(*command, timeout=120)
        for package in downloads.glob("*.deb"):
            run("dpkg", "-x", str(package), str(directory))
    return directory


class CServer:
    """Run one C l2tpns, with the same settings as ours where it has them."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        package: Path,
        *,
        settings: Mapping[str, Setting],
        pool: str = "10.1.0.0/16\n",
    ) -> None:
        self.namespace = namespace
        self.package = package
        self.etc = directory / "etc"
        self.log_file = directory / "log"
        self.errors = directory / "stderr"
        self.process: subprocess.Popen[bytes] | None = None
        (self.etc / "l2tpns").mkdir(parents=True, exist_ok=True)
        for name in ETC:
            if Path("/etc", name).exists():
                shutil.copy(Path("/etc", name), self.etc / name)
        everything: dict[str, Setting] = {"debug": 1, "log_file": str(self.log_file), **ALONE, **settings}
        text = [f'set {name} "{value}"' for name, value in everything.items()]
        (self.etc / "l2tpns/startup-config").write_text("\n".join(text) + "\n")
        (self.etc / "l2tpns/ip_pool").write_text(pool)

    def start(self, timeout: float = 30.0) -> None:
        libraries = next((self.package / "usr/lib").glob("*/libcli.so.*")).parent
        with self.errors.open("ab") as errors:
            self.process = self.namespace.start(
                *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
                f'mount --bind "{self.etc}" /etc && LD_LIBRARY_PATH="{libraries}" exec "$@"',
                *("sh", str(self.package / "usr/sbin/l2tpns"), "-c", "/etc/l2tpns/startup-config"),
                stdout=errors,
                stderr=errors,
            )
        process = self.process

        def ready() -> bool:
            if process.poll() is not None:
                raise ServerDied(f"exit status {process.returncode}\n{self.last_words()}")
            return "declaring myself the master" in self.log()

        wait_until(ready, timeout, "the C l2tpns became master")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def last_words(self) -> str:
        return self.log()[-3000:] + (self.errors.read_text(errors="replace") if self.errors.exists() else "")

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
