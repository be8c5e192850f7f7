"""Two servers in one network namespace leave each other's devices, rules, sets and programs alone (root)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.server import Server, Setting

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

HOST = "198.51.100.2"
SECRETS = "free * pw *\nfenced * pw *\nslow * pw *\n"
ONE, OTHER = 0, 1


class Stage:
    """Two servers with three subscribers each: one as it is, one in a garden, one throttled by HTB."""

    def __init__(self, lab: Lab, **settings: Setting) -> None:
        lac_space, self.space, host = three_hosts(lab)
        host.route("10.2.0.0/16", "198.51.100.1")
        self.space.ip("address", "add", "192.0.2.9/24", "dev", "wan")
        self.space.run("ethtool", "-K", "wan", "tx", "off")
        lac_space.run("ethtool", "-K", "wan", "tx", "off")
        self.servers, self.lacs = [], []
        for number, (device, address) in enumerate((("tun0", "192.0.2.1"), ("tun5", "192.0.2.9"))):
            own: dict[str, Setting] = {
                "tundevicename": device,
                "bind_multi_address": address,
                "cli_bind_address": f"127.0.0.{1 + number}",
                "nsctl_port": 1702 + number,
                "throttle_method": "htb",
                "save_state": True,
                "hello_interval": 0,
                **settings,
            }
            server = Server(
                self.space,
                lab.directory / device,
                settings=own,
                lines=('load plugin "garden"', 'load plugin "throttlectl"'),
                secrets=SECRETS,
                pool=f"10.{1 + number}.0.0/16\n",
            )
            gevent.get_hub().threadpool.apply(server.start)
            self.servers.append(server)
            self.lacs.append(Lac(("0.0.0.0", 0), (address, 1701), sock=lac_space.socket()).connect())
        self.free, self.fenced, self.slow = (
            [lac.call(name, "pw", auth="pap").wait_online() for lac in self.lacs] for name in ("free", "fenced", "slow")
        )
        for number in (ONE, OTHER):
            self.nsctl(number, "garden", "fenced")
            self.nsctl(number, "throttle", "slow", "5000")

    def nsctl(self, number: int, *words: str) -> None:
        self.space.run(sys.executable, "-m", "l2tpns.nsctl", "-h", f"127.0.0.1:{1702 + number}", *words)

    def in_kernel(self, number: int) -> str:
        """Return what the kernel has of a server: device, routes, queues, rules, members of its sets."""
        device, ours = (("tun0", "10.1.0."), ("tun5", "10.2.0."))[number]
        rules = self.space.run("iptables-legacy-save").splitlines()
        mine = [line for line in rules if line.startswith("-") and ("tun5" in line) == (number == OTHER)]
        members = [line for line in self.space.run("ipset", "list").splitlines() if line.startswith(ours)]
        queues = self.space.run("tc", "class", "show", "dev", device).splitlines()
        routes = self.space.ip("route", "show", "dev", device).replace(" linkdown", "").splitlines()
        return "\n".join(["rules", *mine, "sets", *sorted(members), "classes", *sorted(queues), "routes", *routes])

    def works(self, number: int) -> bool:
        """Return whether all subscribers of a server get what they should."""
        pings = [
            self.free[number].ping(HOST),
            self.slow[number].ping(HOST),
            self.fenced[number].ping(HOST, timeout=0.3),
        ]
        return [ping is not None for ping in pings] == [True, True, False]

    def wait_journal(self) -> None:
        for server in self.servers:

            def saved(server: Server = server) -> bool:
                files = (server.directory / "state").glob("*.state")
                text = b"".join(path.read_bytes() for path in files)
                return text.count(b'"garden":"garden"') >= 1 and b'"rate_in":5000' in text

            self.lacs[ONE].wait(saved)

    def close(self) -> None:
        for lac in self.lacs:
            lac.close()
        for server in self.servers:
            if server.process is not None and server.process.poll() is None:
                assert gevent.get_hub().threadpool.apply(server.stop) == 0
            assert server.tracebacks() == ""


@pytest.fixture(params=["off", "on"])
def stage(request: pytest.FixtureRequest, bpf_file_system: Path) -> Iterator[Stage]:
    with Lab() as lab:
        stage = Stage(lab, fast_path=request.param)
        yield stage
        stage.close()


def test_a_server_that_comes_and_goes_changes_nothing_of_the_other(stage: Stage) -> None:
    assert stage.works(ONE) and stage.works(OTHER)
    both = [stage.in_kernel(number) for number in (ONE, OTHER)]
    for number in (OTHER, ONE):
        stage.wait_journal()
        for by in (signal.SIGKILL, signal.SIGTERM):
            server = stage.servers[number]
            if by == signal.SIGKILL:
                server.kill()
            else:
                assert gevent.get_hub().threadpool.apply(server.stop, (by,)) == 0
            assert stage.in_kernel(1 - number) == both[1 - number]
            assert stage.works(1 - number)
            gevent.get_hub().threadpool.apply(server.start)
            assert stage.in_kernel(1 - number) == both[1 - number]
            stage.lacs[number].wait(lambda number=number: stage.in_kernel(number) == both[number])
            assert stage.works(ONE) and stage.works(OTHER)
    assert gevent.get_hub().threadpool.apply(stage.servers[OTHER].stop) == 0
    assert stage.in_kernel(ONE) == both[ONE] and stage.works(ONE)
    assert "tun5" not in stage.space.run("iptables-legacy-save") + stage.space.run("ipset", "list")
    assert "tun5" not in stage.space.ip("link", "show")
