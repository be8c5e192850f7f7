"""What the kernel keeps for the next process when the daemon dies or leaves with save_state (root, own namespaces)."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Iterator

import gevent
import pytest

from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.server import Server, ServerDied, Setting

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
NAMES = ("ann", "ben")
SECRETS = "".join(f"{name} * pw *\n" for name in NAMES)


class Stage:
    """A daemon with two subscribers, which is ended and started again."""

    def __init__(self, lab: Lab, **settings: Setting) -> None:
        self.lac_space, self.space, self.host = three_hosts(lab)
        everything = {"save_state": True, "hello_interval": 0, **settings}
        self.keeps = everything["save_state"]
        self.server = Server(self.space, lab.directory / "lns", settings=everything, secrets=SECRETS)
        self.server.start()
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_space.socket()).connect()
        self.subscribers = [self.lac.call(name, "pw", auth="pap").wait_online() for name in NAMES]

    def end(self, by: int) -> None:
        """Send a signal to the daemon and wait for its end."""
        if by == signal.SIGKILL:
            if self.keeps:
                self.lac.wait(lambda: all(name.encode() in self.saved() for name in NAMES))
            self.server.kill()
        else:
            assert gevent.get_hub().threadpool.apply(self.server.stop, (by,)) == 0

    def saved(self) -> bytes:
        """Return what is in the files of the saved state."""
        return b"".join(path.read_bytes() for path in (self.server.directory / "state").glob("*.state"))

    def begin(self) -> None:
        gevent.get_hub().threadpool.apply(self.server.start)

    def device(self) -> str:
        """Return the index of the tun device, an empty string if there is none."""
        found = re.search(r"(?m)^(\d+): tun0", self.space.ip("-o", "link", "show"))
        return found[1] if found else ""

    def routes(self) -> set[str]:
        """Return our routes; the kernel marks those through a device that no process has open."""
        shown = self.space.ip("route", "show", "proto", "115")
        return {line.replace(" linkdown", "").strip() for line in shown.splitlines()}

    def all_answer(self) -> bool:
        pings = [gevent.spawn(subscriber.ping, HOST, timeout=5.0) for subscriber in self.subscribers]
        gevent.joinall(pings)
        return all(ping.value is not None for ping in pings)

    def refused(self, port: int) -> bool:
        """Return whether a LAC hears that no process listens, before another answer comes back."""
        with self.lac_space.socket() as one, self.lac_space.socket() as later:
            for sock, number in ((one, port), (later, 9)):
                sock.connect((LNS, number))
                sock.settimeout(30)
                sock.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                later.recv(10)
            one.setblocking(False)
            try:
                one.recv(10)
            except ConnectionRefusedError:
                return True
            except BlockingIOError:
                return False
            raise AssertionError("somebody answered")

    def close(self) -> None:
        self.lac.close()
        if self.server.process is not None and self.server.process.poll() is None:
            assert gevent.get_hub().threadpool.apply(self.server.stop) == 0
        assert self.server.tracebacks() == ""
        assert not self.server.log("throttling_impaired")


@pytest.fixture
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    with Lab() as lab:
        stage = Stage(lab, **getattr(request, "param", {}))
        yield stage
        stage.close()


THROTTLED = {"throttle_speed": 5000}
both_ends = pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])


@both_ends
@pytest.mark.parametrize("stage", [{}, THROTTLED], indirect=True, ids=["", "throttled"])
def test_device_and_routes_stay_for_the_next_process_and_quit_removes_them(stage: Stage, by: int) -> None:
    device, routes = stage.device(), stage.routes()
    assert device and routes
    stage.end(by)
    assert stage.refused(1702) and not stage.refused(1701)
    assert (stage.device(), stage.routes()) == (device, routes)
    stage.begin()
    assert stage.server.log("tun_up")[-1]["adopted"]
    assert (stage.device(), stage.routes()) == (device, routes)
    assert stage.all_answer()
    assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    assert stage.device() == "" and stage.routes() == set()
    assert "l2tpns" not in stage.space.run("iptables-legacy-save")


@both_ends
@pytest.mark.parametrize("stage", [{"save_state": False}], indirect=True, ids=[""])
def test_without_save_state_nothing_stays(stage: Stage, by: int) -> None:
    stage.end(by)
    assert stage.device() == "" and stage.refused(1701)


def test_a_start_that_fails_leaves_an_adopted_device_to_the_next_one(stage: Stage) -> None:
    stage.end(signal.SIGKILL)
    device, routes = stage.device(), stage.routes()
    with stage.space.socket(kind=socket.SOCK_STREAM) as taken:
        taken.bind(("127.0.0.1", 23))
        taken.listen()
        with pytest.raises(ServerDied, match="the console cannot listen"):
            stage.begin()
    stage.server.errors.write_text("")  # what it said to the operator
    assert (stage.device(), stage.routes()) == (device, routes)
    stage.begin()
    assert stage.all_answer()


def test_clean_kernel_and_a_start_without_save_state_remove_the_device(stage: Stage) -> None:
    stage.end(signal.SIGKILL)
    assert stage.device()
    assert stage.space.run(sys.executable, "-m", "l2tpns", "--clean-kernel").startswith("2 ")
    assert stage.device() == "" and "l2tpns" not in stage.space.run("iptables-legacy-save")
