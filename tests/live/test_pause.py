"""A daemon that is stopped for longer than any of its time-outs, as a virtual machine may be (root).

Its peers are not stopped: they go on talking, and wait for the answers.
"""

from __future__ import annotations

import signal

import gevent
import pytest

from tests.lab.inprocess import until
from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.server import Server

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"


def test_after_a_pause_nobody_is_cut_off_who_was_there_all_the_time(lab: Lab) -> None:
    lac_space, space, _ = three_hosts(lab)
    users = "".join(f"user{number} * secret *\n" for number in range(21))
    settings = {"echo_timeout": 2, "idle_echo_timeout": 5, "hello_interval": 2, "login_timeout": 5}
    pool = gevent.get_hub().threadpool
    with Server(space, lab.directory / "lns", settings=settings, secrets=users) as server:
        lac = Lac(("0.0.0.0", 0), (LNS, 1701), "lac1", sock=lac_space.socket()).connect()
        calls = [lac.call(f"user{number}", "secret").wait_online() for number in range(20)]
        talking = gevent.spawn(talk, calls[:10])
        starting = lac.call("user20", "secret")
        server.signal(signal.SIGSTOP)
        gevent.sleep(8)
        server.signal(signal.SIGCONT)
        pool.apply(server.wait_for, ("process_paused",))
        answered = [call.echoes_answered for call in calls[10:]]
        until(lambda: all(call.echoes_answered > before for call, before in zip(calls[10:], answered, strict=True)))
        talking.kill()
        assert starting.wait_online().online
        assert all(call.online for call in calls)
        assert not server.log("session_down") and not server.log("tunnel_down")
        lac.close()


def talk(calls: list[object]) -> None:
    while True:
        for call in calls:
            call.send_udp(HOST, 7, b"still here")  # type: ignore[attr-defined]
        gevent.sleep(0.5)
