"""The disk of state and spool is full while sessions begin and end; then the daemon is killed, or told to leave.

Each session has one Start and one Stop, and nobody who has a Stop is online (root, own namespaces, a small tmpfs).
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
import pytest

from tests.lab.inprocess import until
from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.radius_server import RadiusServer, User
from tests.lab.server import Server, Setting

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces and a mount")]

LNS = ("192.0.2.1", 1701)
HOST = "198.51.100.2"
START, STOP = 1, 2


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=False)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    descriptor = os.open(filler, os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError) as full:
        while True:
            os.write(descriptor, b"x" * 4096)
    assert full.value.errno == errno.ENOSPC
    os.close(descriptor)
    return filler


def in_thread(call, *args):  # type: ignore[no-untyped-def]
    return gevent.get_hub().threadpool.apply(call, args)


@pytest.mark.parametrize("how", ["kill -9", "SIGTERM"])
def test_nobody_comes_online_again_whose_stop_is_delivered_and_each_session_has_one(lab: Lab, how: str) -> None:
    lacs, space, _ = three_hosts(lab)
    with space.entered():
        radius = RadiusServer(users={b"user%d" % number: User(b"secret") for number in range(60)}).start()
    with small_disk(lab.directory / "disk") as disk:
        settings: dict[str, Setting] = {
            "primary_radius": "127.0.0.1",
            "primary_radius_port": radius.port,
            "radius_secret": "testing123",
            "radius_accounting": True,
            "save_state": True,
            "hello_interval": 0,
            "state_dir": f"{disk}/state",
            "spool_dir": f"{disk}/spool",
        }
        server = Server(space, lab.directory / "lns", settings=settings, secrets="")
        in_thread(server.start)
        lac = Lac(("0.0.0.0", 0), LNS, sock=lacs.socket()).connect()
        there = [lac.call(f"user{number}", "secret", auth="pap").wait_online() for number in range(6)]
        filler = fill(disk)
        for number in range(20, 50):  # what is left of the last page is used up
            lac.call(f"user{number}", "secret", auth="pap").wait_online().hangup()
        for subscriber in there[:3]:
            subscriber.hangup()
        until(lambda: len({record.one(44) for record in radius.accounting() if record.number(40) == STOP}) == 33)
        late = lac.call("user10", "secret", auth="pap").wait_online()  # so it has read the last answer, too
        assert late.ping(HOST) is not None
        if how == "kill -9":
            server.kill()
        else:
            in_thread(server.stop, signal.SIGTERM)
        filler.unlink()
        in_thread(server.start)
        served = [gevent.spawn(subscriber.ping, HOST, timeout=3.0) for subscriber in (*there[3:], late)]
        gevent.joinall(served)
        online = sum(1 for ping in served if ping.value is not None)
        until(
            lambda: len({record.one(44) for record in radius.accounting() if record.number(40) == STOP}) >= 37 - online
        )
        said: dict[bytes, list[int]] = defaultdict(list)
        for record in radius.accounting():
            kind, name = record.number(40), record.one(1)
            # Of the last two the server's answer may not have been read yet: then their records come once more.
            if kind in (START, STOP) and not (name in (b"user2", b"user10") and kind in said[name]):
                said[name].append(kind)
        assert len(said) == 37
        assert {tuple(kinds) for kinds in said.values()} <= {(START, STOP), (START,)}, said
        assert sum(1 for kinds in said.values() if kinds == [START]) == online
        assert server.tracebacks() == ""
        server.kill()
    lac.alive = False
    lac.leave()
    radius.stop()
