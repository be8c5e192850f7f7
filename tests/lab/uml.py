"""Run a Linux machine as a process (Debian's user-mode-linux), for clients that need PPP in their kernel.

The machine's network card is a tap device in a namespace. Its root is a directory of its own with a few files copied
from this machine's /etc; /usr is this machine's, mounted by hostfs and read-only, so Debian's own xl2tpd, pppd and
iperf3 run in it unmodified. guest.sh is its first process and takes commands over a serial line.

    guest = Guest(namespace, lab.directory / "guest")
    guest.boot()
    print(guest.run("uname -r"))
"""

from __future__ import annotations

import base64
import os
import select
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import PATIENCE, fxsave
from tests.lab.netns import CommandFailed, Namespace, end

MODULES = ("ppp_generic", "ppp_async", "ppp_synctty", "bsd_comp", "ppp_deflate", "ppp_mppe", "sch_netem")
ETC = ("group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "nsswitch.conf", "passwd", "services")
LINKS = ("bin", "lib", "lib32", "lib64", "libx32", "sbin")
PLACES = ("dev", "etc/ppp", "etc/xl2tpd", "modules/lib", "proc", "root", "run", "sys", "tmp", "usr", "var/log")


class GuestDied(Exception):
    """Report that the machine has exited or does not answer. The text holds the end of its console."""


class Guest:
    """Run one machine. `network` is its link: (tap device, our address on it, the guest's address)."""

    def __init__(
        self,
        namespace: Namespace,
        directory: Path,
        *,
        network: tuple[str, str, str] = ("tap0", "172.31.0.1/24", "172.31.0.2/24"),
        memory: str = "192M",
    ) -> None:
        self.namespace = namespace
        self.root = directory / "root"
        self.directory = directory
        self.console = directory / "console"
        self.device, self.gateway, self.address = network
        self.memory = memory
        self.process: subprocess.Popen[bytes] | None = None
        self.booted_in = 0.0
        self._line = -1  # our end of the serial line
        self._heard = b""
        self._number = 0

    def boot(self, timeout: float = 6 * PATIENCE) -> None:
        begun = time.monotonic()
        self._furnish()
        self.namespace.tap(self.device, self.gateway)
        mine, theirs = os.openpty()
        # The terminal only carries octets: no echo, no line editing on this side.
        subprocess.run(["stty", "raw", "-echo"], stdin=theirs, check=True)
        with self.console.open("wb") as console:
            self.process = self.namespace.start(
                *((sys.executable, fxsave.__file__) if fxsave.needed() else ()),
                *("linux", f"mem={self.memory}", f"uml_dir={self.directory}/", "umid=guest", "quiet"),
                *("root=/dev/root", "rootfstype=hostfs", f"rootflags={self.root}", "rw", "init=/init"),
                f"vec0:transport=tap,ifname={self.device},depth=128,gro=1",
                *("con=null", "con0=null,fd:1", f"ssl0=fd:{theirs}"),
                *(f"guest_address={self.address}", f"guest_gateway={self.gateway.split('/')[0]}"),
                f"guest_modules={','.join(MODULES)}",
                *(fxsave.ENVIRONMENT if fxsave.needed() else ()),
                stdout=console,
                stderr=console,
                env={**os.environ, "TMPDIR": str(self.directory)},
                pass_fds=(theirs,),
            )
        os.close(theirs)
        self._line = mine
        self._answer("ready", timeout)
        self.booted_in = time.monotonic() - begun

    def run(self, command: str, *, check: bool = True, timeout: float = 4 * PATIENCE) -> str:
        """Run a shell command in the guest and return what it printed; background jobs redirect their own."""
        if self._line < 0:
            raise GuestDied("not booted")
        self._number += 1
        octets = b"%d %s\n" % (self._number, base64.b64encode(command.encode()))
        while octets:
            octets = octets[os.write(self._line, octets[:1024]) :]
        status, output = self._answer(str(self._number), timeout)
        if check and status != 0:
            raise CommandFailed(f"guest: {command}: exit status {status}\n{output}")
        return output

    def write(self, path: str, text: str) -> None:
        """Write a file in the guest. The guest does it: hostfs does not read again what it has seen."""
        encoded = base64.b64encode(text.encode()).decode()
        self.run(f"echo {encoded} | base64 -d > {path} && chmod 600 {path}")

    def close(self) -> None:
        if self._line >= 0:
            with suppress(OSError):
                os.write(self._line, b"0 %s\n" % base64.b64encode(b"busybox poweroff -f"))
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            end(self.process)
        if self._line >= 0:
            os.close(self._line)
            self._line = -1

    def __enter__(self) -> Self:
        self.boot()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _furnish(self) -> None:
        for place in PLACES:
            (self.root / place).mkdir(parents=True, exist_ok=True)
        for link in LINKS:
            if Path("/", link).is_symlink() and not (self.root / link).is_symlink():
                (self.root / link).symlink_to(os.readlink(Path("/", link)))
        for name in ETC:
            source = Path("/etc", name)
            if source.is_dir():
                shutil.copytree(source, self.root / "etc" / name, dirs_exist_ok=True)
            elif source.exists():
                shutil.copy(source, self.root / "etc" / name)
        (self.root / "var/run").unlink(missing_ok=True)
        (self.root / "var/run").symlink_to("/run")
        (self.root / "modules/lib/modules").unlink(missing_ok=True)
        (self.root / "modules/lib/modules").symlink_to("/usr/lib/uml/modules")
        shutil.copy("/bin/busybox", self.root / "busybox")  # static: it runs before /usr is there
        shutil.copy(Path(__file__).with_name("guest.sh"), self.root / "init")

    def _answer(self, number: str, timeout: float) -> tuple[int, str]:
        deadline = time.monotonic() + timeout
        while True:
            line, found, rest = self._heard.partition(b"\n")
            if found:
                self._heard = rest
                words = line.decode(errors="replace").split()
                if words and words[0] == number and len(words) >= 2:
                    text = base64.b64decode(words[2]) if len(words) > 2 else b""
                    return int(words[1]), text.decode(errors="replace")
                continue
            left = deadline - time.monotonic()
            if left <= 0 or self.process is None or self.process.poll() is not None:
                raise GuestDied(f"no answer within {timeout:g} s\n{self._last_words()}")
            if select.select([self._line], [], [], min(left, 0.5))[0]:
                try:
                    self._heard += os.read(self._line, 65536)
                except OSError as error:
                    raise GuestDied(f"{error}\n{self._last_words()}") from None

    def _last_words(self) -> str:
        return "\n".join(self.console.read_text(errors="replace").splitlines()[-20:])


if __name__ == "__main__":
    from tests.lab.netns import Lab

    with Lab() as lab, Guest(lab.namespace("client"), lab.directory / "guest") as machine:
        print(f"booted in {machine.booted_in:.1f} s")
        print(machine.run(" ".join(sys.argv[1:]) or "uname -a; ip -br address; lsmod"))
