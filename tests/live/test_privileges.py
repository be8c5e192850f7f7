"""`setuid`: the daemon as an unprivileged user with three capabilities does what it does as root."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from l2tpns.system.privileges import KEPT
from tests.lab.console import Console
from tests.lab.lac import Dial, Lac
from tests.lab.netns import Lab, Namespace, is_root, three_hosts, wait_until
from tests.lab.server import CHECKOUT, Server, ServerDied

pytestmark = pytest.mark.live
LNS, HOST = "192.0.2.1", "198.51.100.2"
UID = 31701  # of no user of any machine; the group has the same number
PYTHON = "/usr/bin/python3"  # any user may read it; the interpreter of a virtual environment may be somebody's own
# `ip netns exec` gives each program mounts of its own; udev makes the device with this mode, containers often do not.
OPEN_TUN = 'mount --bind "$0" /dev/net/tun && exec "$@"'
NEEDED = (Path(PYTHON), CHECKOUT, Path(sysconfig.get_path("purelib")))


def reachable(path: Path) -> bool:
    """Return True if every user may read the path."""
    return all(there.stat().st_mode & 0o005 == 0o005 for there in (path, *path.parents) if there.exists())


class Stage:
    """Three hosts, and a daemon that gives up root between them."""

    def __init__(self, lab: Lab, **settings: Any) -> None:
        self.lac_space, self.space, self.host = three_hosts(lab)
        lab.directory.chmod(0o711)
        self.home = lab.directory / "lns"
        tun = lab.directory / "tun"
        os.mknod(tun, stat.S_IFCHR, os.stat("/dev/net/tun").st_rdev)
        tun.chmod(0o666)
        everything = {"setuid": str(UID), "save_state": True, "pid_file": "/run/l2tpns-test.pid", **settings}
        plugins = ['load plugin "garden"', 'load plugin "throttlectl"']
        self.server = Server(
            self.space,
            self.home,
            settings=everything,
            lines=plugins,
            secrets="fred * secret *\nmary * secret *\n",
            command=("sh", "-c", OPEN_TUN, str(tun), PYTHON, "-m", "l2tpns"),
        )
        self.readable()

    def readable(self) -> None:
        """Let the user read its configuration, and write none of it."""
        for path in (self.home, *self.home.glob("l2tpns.*")):
            os.chown(path, 0, UID)
            path.chmod(0o750 if path.is_dir() else 0o640)

    def start(self) -> None:
        gevent.get_hub().threadpool.apply(self.server.start)
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=self.lac_space.socket(), defaults=Dial(auth="pap"))

    def status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.server.pid}/status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def console(self, line: str) -> str:
        with Console(self.space) as console:
            return console.do(line)


@pytest.fixture
def stage(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    if not is_root():
        pytest.skip("needs root for namespaces")
    if not all(map(reachable, NEEDED)) or sys.version_info[:2] != _version(PYTHON):
        pytest.skip(f"no other user may read {', '.join(map(str, NEEDED))}, or {PYTHON} is another version than ours")
    monkeypatch.setenv("PYTHONPATH", f"{CHECKOUT}:{sysconfig.get_path('purelib')}")
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("L2TPNS_STATE", str(lab.directory / "var"))  # not the machine's: it is given away
    monkeypatch.setenv("L2TPNS_RUN", str(lab.directory / "run"))
    yield Stage(lab)


def _version(python: str) -> tuple[int, ...]:
    said = subprocess.run([python, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True)
    return tuple(map(int, said.stdout.split()))


@pytest.mark.shows("set setuid")
def test_it_is_the_user_with_three_capabilities_and_serves_throttles_gardens_reloads_and_restarts(stage: Stage) -> None:
    stage.start()
    server = stage.server
    status = stage.status()
    assert set(status["Uid"].split()) == {str(UID)} and set(status["Gid"].split()) == {str(UID)}
    assert status["Groups"] == "" and status["NoNewPrivs"] == "1"
    mask = f"{sum(1 << number for number in KEPT.values()):016x}"
    assert {status[name] for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")} == {mask}

    stage.lac.connect()
    fred = stage.lac.call("fred", "secret").wait_online()
    mary = stage.lac.call("mary", "secret").wait_online()
    assert fred.ping(HOST) is not None
    assert "fred" in stage.console("throttle fred 512")
    assert "htb" in stage.space.run("tc", "qdisc", "show", "dev", "tun0")
    wait_until(lambda: f"{fred.address}" in stage.space.run("ipset", "save", "l2tpns_throttle"))
    stage.console("garden mary")
    wait_until(lambda: f"{mary.address}" in stage.space.run("ipset", "save", "garden_users"))
    assert mary.ping(HOST, timeout=0.5) is None

    with (stage.home / "l2tpns.cfg").open("a") as file:
        file.write("set primary_dns 192.0.2.53\nset cli_bind_address 192.0.2.1\n")
    server.signal(signal.SIGHUP)
    server.wait_for("reloaded")
    said = stage.console("write memory")
    assert "Permission denied; the server is not root (setuid)" in said
    assert f"chgrp {UID} {stage.home} && chmod g+rwx {stage.home}" in said
    server.signal(signal.SIGUSR1)
    server.wait_for("status")
    assert server.log("sysctl_refused") == []
    assert stage.space.run("sysctl", "-n", "net.ipv4.conf.tun0.send_redirects") == "0\n"
    assert Path("/run/l2tpns-test.pid").read_text() == f"{server.pid}\n"

    assert gevent.get_hub().threadpool.apply(lambda: server.stop(signal.SIGTERM)) == 0
    gevent.get_hub().threadpool.apply(server.start)
    assert server.log("state_resumed")[-1]["sessions"] == 2
    assert fred.ping(HOST) is not None
    assert mary.ping(HOST, timeout=0.5) is None
    for path in (stage.home / "state").rglob("*"):
        assert path.stat().st_uid == UID
    assert server.stop() == 0
    assert server.tracebacks() == ""


def test_the_fast_path_goes_on_while_a_server_without_root_restarts(stage: Stage, bpf_file_system: Path) -> None:
    server = stage.server
    server.configure({"setuid": UID, "save_state": True, "fast_path": "on"})
    stage.readable()
    stage.start()
    fred = stage.lac.connect().call("fred", "secret").wait_online()
    wait_until(lambda: any(b"fred" in path.read_bytes() for path in (stage.home / "state").glob("*.state")))
    for _ in range(2):
        server.kill()
        assert fred.ping(HOST) is not None
        gevent.get_hub().threadpool.apply(server.start)
        assert fred.ping(HOST) is not None
    assert server.stop() == 0
    assert [line["adopted"] for line in server.log("fast_path_up")] == [False, True, True]
    assert server.log("fast_path_not_kept") == []
    assert not [path for path in (bpf_file_system / "l2tpns").rglob("*") if path.is_file()]


@pytest.mark.shows("write memory")
@pytest.mark.parametrize("owner", [0, UID])
def test_write_memory_works_where_root_has_done_what_the_refusal_says_and_the_next_start_accepts_it(
    stage: Stage, owner: int
) -> None:
    stage.server.configure({"setuid": UID, "l2tp_secret": "hidden", "save_state": True})
    stage.readable()
    os.chown(stage.home, owner, UID)
    stage.home.chmod(0o770)
    stage.start()
    config = stage.home / "l2tpns.cfg"
    assert (config.stat().st_uid, config.stat().st_gid) == (0, UID)
    with Console(stage.space) as console:
        console.do("configure terminal")
        console.do("set primary_dns 192.0.2.53")
        console.do("end")
        assert f"{config} written" in console.do("write memory")
        found = config.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (UID, UID, 0o640)
        assert "set primary_dns 192.0.2.53\n" in config.read_text()
        assert f"{config} written" in console.do("write memory")  # its own file this time
    assert [path.name for path in stage.home.glob(".*")] == []  # nothing unfinished
    stage.server.signal(signal.SIGHUP)
    stage.server.wait_for("reloaded")
    assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    gevent.get_hub().threadpool.apply(stage.server.start)
    assert "192.0.2.53" in stage.console("show running-config")
    assert stage.status()["Uid"].split()[0] == str(UID)
    for event in ("place_unsafe", "secrets_readable", "secrets_file_open_to_others"):
        assert stage.server.log(event) == []
    assert stage.server.stop() == 0

    stage.home.chmod(0o777)  # that other users may write there is still said
    before = len(stage.server.log())
    stage.server.start()
    assert "every user" in stage.server.log("place_unsafe", after=before)[0]["why"]
    assert stage.server.stop() == 0
    assert stage.server.tracebacks() == ""


# Python announces an import that has to look for the module by an audit event, whether or not it is found.
WATCHED = """
import os, runpy, sys, traceback

def watch(event, details):
    if event == "import" and os.geteuid() != 0:
        os.write(2, f"late import of {details[0]}\\n{''.join(traceback.format_stack())}".encode())

sys.addaudithook(watch)
runpy.run_module("l2tpns", run_name="__main__", alter_sys=True)
"""


def test_every_module_is_imported_before_root_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its files may be for root alone, and an upgrade may have replaced them.
    stage.server.command = [*stage.server.command[:-2], "-c", WATCHED]
    script = stage.home / "build-garden"
    script.write_text("#!/bin/sh\necho built\n")
    script.chmod(0o755)
    monkeypatch.setenv("L2TPNS_ETC", str(stage.home))
    settings = {
        "setuid": UID,
        "save_state": True,
        "hostname": "lns",
        "metrics_bind_address": "127.0.0.1",
        "metrics_port": 9101,
        "radius_accounting": True,
        "accounting_dir": str(stage.home / "usage"),
    }
    (stage.home / "usage").mkdir()
    os.chown(stage.home / "usage", UID, UID)
    stage.server.configure(settings, ['load plugin "garden"', 'load plugin "throttlectl"'])
    stage.readable()
    stage.start()
    stage.lac.connect()
    for name in ("fred", "mary"):
        stage.lac.call(name, "secret").wait_online()
    for line in ("throttle fred 512", "garden mary", "show session", "show version", "write memory", "reload"):
        stage.console(line)
    wait_until(lambda: "garden_users" in stage.space.run("ipset", "list", "-n"))
    stage.space.run(sys.executable, "-c", FETCH)
    stage.server.signal(signal.SIGUSR1)
    stage.server.wait_for("status")
    stage.lac.close()
    assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    assert stage.server.errors.read_text() == ""


FETCH = """
from urllib.request import urlopen
for path in ("", "metrics", "status.css", "status.js", "health"):
    assert urlopen(f"http://127.0.0.1:9101/{path}", timeout=10).status == 200
"""


def rules(space: Namespace) -> list[str]:
    """Return our rules in the tables that iptables-legacy shows."""
    said = "".join(space.run("iptables-legacy-save", "-t", table) for table in ("filter", "nat", "mangle"))
    return [line for line in said.splitlines() if "l2tpns" in line]


def test_it_removes_its_rules_at_the_end_and_after_a_crash_though_the_list_of_tables_is_roots(stage: Stage) -> None:
    for by in (signal.SIGKILL, signal.SIGQUIT):
        stage.start()
        stage.lac.connect()
        stage.lac.call("fred", "secret").wait_online()
        stage.lac.call("mary", "secret").wait_online()
        stage.console("throttle fred 512")
        stage.console("garden mary")
        wait_until(lambda: any("garden" in rule for rule in rules(stage.space)))
        wait_until(lambda: any("throttle" in rule for rule in rules(stage.space)))
        stage.lac.leave()
        gevent.get_hub().threadpool.apply(stage.server.stop if by == signal.SIGQUIT else stage.server.kill)
    assert stage.server.log("firewall_cleaned")
    assert rules(stage.space) == []


def test_its_log_may_be_in_a_directory_of_the_user_at_each_start(stage: Stage) -> None:
    logs = stage.home / "logs"
    logs.mkdir(mode=0o750)
    os.chown(logs, UID, UID)
    stage.server.configure({"setuid": UID, "log_file": f"{logs}/log", "audit_file": f"{logs}/audit"})
    stage.readable()
    for _ in range(2):
        stage.start()
        assert gevent.get_hub().threadpool.apply(stage.server.stop) == 0
    assert (logs / "log").stat().st_uid == UID
    assert '"place_unsafe"' not in (logs / "log").read_text()


@pytest.mark.parametrize(("mode", "group", "warned"), [(0o640, UID, 0), (0o640, UID + 1, 1), (0o644, UID, 1)])
def test_a_file_of_secrets_may_be_readable_for_its_own_group_alone(
    stage: Stage, mode: int, group: int, warned: int
) -> None:
    for name in ("secrets", "users"):
        path = stage.home / f"l2tpns.{name}"
        path.write_text("fred * secret *\n" if name == "secrets" else "fred:hush\n")
        os.chown(path, UID if group != UID else 0, group)
        path.chmod(mode)
    stage.start()
    assert len(stage.server.log("secrets_file_open_to_others")) == warned
    assert len(stage.server.log("console_users_doubtful")) == warned
    stage.server.signal(signal.SIGHUP)
    stage.server.wait_for("reloaded")
    assert len(stage.server.log("secrets_file_open_to_others")) == 2 * warned
    assert stage.server.stop() == 0


def test_only_a_directory_of_plain_files_is_given_away_and_no_file_with_another_name(stage: Stage) -> None:
    theirs = stage.home / "theirs"
    theirs.write_text("root's\n")
    state = stage.home / "state"
    state.mkdir(mode=0o700)
    (state / "0000000001.state").hardlink_to(theirs)
    (state / "0000000002.state").symlink_to(theirs)
    stage.start()
    assert stage.server.stop() == 0
    assert state.stat().st_uid == UID
    assert theirs.stat().st_uid == 0

    os.chown(state, 0, 0)
    (state / "somebody").mkdir()
    with pytest.raises(ServerDied, match=f"setuid: {state} holds directories and is not given to {UID}"):
        stage.server.start()
    assert state.stat().st_uid == 0


def test_a_configuration_that_the_user_could_not_reload_stops_the_start_and_names_the_file(stage: Stage) -> None:
    secrets = stage.home / "l2tpns.secrets"
    secrets.chmod(0o600)
    with pytest.raises(ServerDied, match=rf"setuid: {UID} may not read {secrets}"):
        stage.server.start()


def test_a_user_that_the_machine_does_not_have_stops_the_start(stage: Stage) -> None:
    stage.server.configure({"setuid": "no-such-user"})
    stage.readable()
    with pytest.raises(ServerDied, match="setuid: this machine has no user no-such-user"):
        stage.server.start()
