"""`make install` and `make uninstall` into directories of the test's own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
from pathlib import Path

import gevent
import pytest

from tests.lab.console import Console
from tests.lab.lac import Dial, Lac
from tests.lab.netns import Lab, is_root, machines_network, three_hosts
from tests.lab.server import CHECKOUT, Server

PARTS = [
    "Makefile",
    "README.md",
    "docs",
    "etc",
    "l2tpns",
    "modules",
    "pyproject.toml",
    "setup.py",
    "tools/setup.sh",
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, in which a test may play the next release."""
    directory = tmp_path_factory.mktemp("source")
    for part in PARTS:
        target = directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if (CHECKOUT / part).is_dir():
            shutil.copytree(CHECKOUT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / part, target)
    for name in ("example", "unwanted", "untouched"):
        (directory / "etc/l2tpns" / name).write_text("the default\n")
    (directory / "modules/example.py").write_text('"""A plugin."""\n')
    return directory


@pytest.fixture(scope="module")
def etc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of /etc without the user l2tpns: as root, `make install` adds that user there, not to this machine."""
    directory = tmp_path_factory.mktemp("machine") / "etc"
    shutil.copytree("/etc", directory, symlinks=True, ignore_dangling_symlinks=True)
    for name in ("passwd", "shadow", "group", "gshadow"):
        if (directory / name).exists():
            lines = (directory / name).read_text().splitlines(keepends=True)
            (directory / name).write_text("".join(line for line in lines if not line.startswith("l2tpns:")))
    return directory


def within(etc: Path, *argv: str) -> list[str]:
    """Return the command for a program that sees this directory as /etc."""
    if not is_root():
        return list(argv)
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc && exec "$@"', str(etc), *argv]


def make(source: Path, etc: Path, *argv: str) -> str:
    with machines_network():
        done = subprocess.run(within(etc, "make", *argv), cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_staged_installation_works_where_it_lands_and_names_no_staging_directory(
    source: Path, etc: Path, tmp_path: Path
) -> None:
    stage, home = tmp_path / "stage", tmp_path / "opt"
    said = make(source, etc, "install", f"DESTDIR={stage}", f"PREFIX={home}")
    assert "the user l2tpns has to be made" in said
    assert "\nl2tpns:" not in (etc / "passwd").read_text()  # that is for the package's postinst, by this file:
    assert "\nu     l2tpns " in (stage / home.relative_to("/") / "lib/sysusers.d/l2tpns.conf").read_text()
    assert not home.exists()
    shutil.move(stage / home.relative_to("/"), home)
    shutil.rmtree(stage)

    found = subprocess.run(["grep", "-rlF", str(stage), str(home)], capture_output=True, text=True)
    assert found.stdout == ""
    help_text = subprocess.run([home / "sbin/l2tpns", "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert help_text.returncode == 0, help_text.stderr
    assert "-c" in help_text.stdout

    for program in ("nsctl", "l2tpns-capture"):
        version = subprocess.run([home / "sbin" / program, "--version"], capture_output=True, text=True, cwd=tmp_path)
        assert version.stdout.startswith(f"{program} "), version.stderr

    unit = (home / "lib/systemd/system/l2tpns.service").read_text()
    assert f"ExecStart={home}/sbin/l2tpns\n" in unit
    assert "@" not in unit.replace("modprobe@", "")

    pages = re.findall(r"\((docs/[^)#]*)", (home / "lib/l2tpns/README.md").read_text())
    assert "docs/configuration.md" in pages
    assert [page for page in pages if not (home / "lib/l2tpns" / page).exists()] == []


def test_an_edited_configuration_survives_upgrade_and_uninstall_and_a_deleted_one_stays_away(
    source: Path, etc: Path, tmp_path: Path
) -> None:
    prefix = f"PREFIX={tmp_path}"
    own, plugin = tmp_path / "etc/l2tpns", tmp_path / "lib/l2tpns/example.py"
    names = sorted(file.name for file in (source / "etc/l2tpns").iterdir())
    make(source, etc, "install", prefix)
    assert sorted(file.name for file in own.iterdir()) == names
    assert plugin.exists()

    (own / "example").write_text("the operator's\n")
    (own / "unwanted").unlink()
    (own / "l2tpns.cfg").write_text("set debug 3\n")
    (own / "l2tpns.cfg").chmod(0o600)
    own.chmod(0o770)  # as `write memory` under setuid needs it
    for name in ("example", "unwanted", "untouched"):
        (source / "etc/l2tpns" / name).write_text("the next release's default\n")
    said = make(source, etc, "install", prefix)
    assert (own / "example").read_text() == "the operator's\n"
    assert (own / "example.new").read_text() == "the next release's default\n"
    assert "example was edited and stays" in said
    assert "The server stays root" in said
    assert stat.S_IMODE((own / "l2tpns.cfg").stat().st_mode) == 0o600
    assert stat.S_IMODE(own.stat().st_mode) == 0o770
    assert not (own / "unwanted").exists()
    assert (own / "untouched").read_text() == "the next release's default\n"

    (tmp_path / "lib/l2tpns/own.py").write_text('"""A plugin of the site."""\n')
    make(source, etc, "uninstall", prefix)
    left = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert left == ["etc/l2tpns/example", "etc/l2tpns/l2tpns.cfg", "lib/l2tpns/own.py"]


UNIT = CHECKOUT / "etc/systemd/l2tpns.service.in"


def unit_value(name: str) -> str:
    """Return a value of the unit; none of those asked for stands there twice."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.M)[0]


def owners(path: Path) -> tuple[int, int, int]:
    """Return user, group and mode."""
    found = path.stat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@pytest.mark.skipif(not is_root(), reason="needs root for namespaces")
def test_an_installed_server_runs_as_its_own_user_within_the_unit_and_takes_up_what_root_has_left(
    source: Path, etc: Path, lab: Lab
) -> None:
    lac_space, space, _ = three_hosts(lab)
    lab.directory.chmod(0o711)
    home, tun = lab.directory / "home", lab.directory / "tun"
    os.mknod(tun, stat.S_IFCHR, os.stat("/dev/net/tun").st_rdev)
    tun.chmod(0o666)  # udev's mode
    make(source, etc, "install", f"PREFIX={home}", "PYTHON=/usr/bin/python3")
    _, _, uid, gid, _, folder, shell = next(
        line.split(":") for line in (etc / "passwd").read_text().splitlines() if line.startswith("l2tpns:")
    )
    assert 0 < int(uid) < 1000 and (folder, shell) == ("/nonexistent", "/usr/sbin/nologin")
    readable = {path: (0, int(gid), 0o640) for path in (home / "etc/l2tpns").iterdir()}
    assert {path: owners(path) for path in readable} == readable

    config = home / "etc/l2tpns/l2tpns.cfg"
    shipped = config.read_text()
    assert "\nset setuid l2tpns\n" in shipped
    config.write_text(shipped.replace("set setuid l2tpns", "") + "set save_state yes\nset radius_accounting yes\n")
    for name, line in (("secrets", "fred * secret *"), ("ip_pool", "10.1.0.0/16")):
        with (home / f"etc/l2tpns/l2tpns.{name}").open("a") as file:
            file.write(f"{line}\n")
    for path in readable:
        os.chown(path, 0, 0)
        path.chmod(0o600)
    bounding = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in unit_value("CapabilityBoundingSet").split())
    mounts = 'mount --bind "$0" /etc && mount --bind "$1" /dev/net/tun && mount -t tmpfs -o mode=755 none /run && '
    mounts += 'mkdir /run/lock && shift && umask 077 && exec "$@"'
    unit = ("sh", "-c", mounts, str(etc), str(tun), "setpriv", f"--bounding-set=-all,{bounding}", "--no-new-privs")
    server = Server(space, lab.directory / "unused", command=(*unit, str(home / "sbin/l2tpns")))
    server.config = config
    apply = gevent.get_hub().threadpool.apply

    apply(server.start)  # as 0.1.0 was: root, files that are root's alone, a configuration without setuid
    lac = Lac(("0.0.0.0", 0), ("192.0.2.1", 1701), sock=lac_space.socket(), defaults=Dial(auth="pap")).connect()
    fred = lac.call("fred", "secret").wait_online()
    assert apply(server.stop, (signal.SIGTERM,)) == 0
    state = home / "var/lib/l2tpns"
    assert {path.stat().st_uid for path in state.rglob("*")} == {0}

    # With it, an installation lets the user read the files, edited ones too.
    config.write_text(config.read_text() + "set setuid l2tpns\n")
    make(source, etc, "install", f"PREFIX={home}", "PYTHON=/usr/bin/python3")
    assert {path: owners(path) for path in readable} == readable
    apply(server.start)
    assert server.log("state_resumed")[-1]["sessions"] == 1
    assert fred.ping("198.51.100.2") is not None
    status = dict(line.split(":\t") for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    for name in ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"):
        print(f"/proc/{server.pid}/status: {name}:", " ".join(status[name].split()))
    assert set(status["Uid"].split()) == {uid} and set(status["Gid"].split()) == {gid}
    assert {status[name] for name in ("CapPrm", "CapEff", "CapInh", "CapBnd", "CapAmb")} == {"0000000000003400"}
    assert {path.stat().st_uid for path in (state, *state.rglob("*"))} == {int(uid)}
    assert server.log("secrets_file_open_to_others") == []

    # The directory is root's until root says otherwise.
    with Console(space) as console:
        refusal = console.do("write memory")
        command = f"chgrp l2tpns {home}/etc/l2tpns && chmod g+rwx {home}/etc/l2tpns"
        assert command in refusal
        subprocess.run(within(etc, "sh", "-c", command), check=True)
        assert f"{config} written" in console.do("write memory")
    assert owners(config) == (int(uid), int(gid), 0o640)

    # What `systemctl reload` does: without the + root could not signal the server within the bounding set.
    assert unit_value("ExecReload").startswith("+/bin/kill ")
    within_set = ("setpriv", f"--bounding-set=-all,{bounding}", f"--inh-caps=-all,{bounding}")
    assert subprocess.run([*within_set, "kill", "-HUP", str(server.pid)], capture_output=True).returncode != 0
    server.signal(signal.SIGHUP)
    server.wait_for("reloaded")

    lac.leave()
    assert apply(server.stop) == 0
    assert server.tracebacks() == ""
    assert "The user l2tpns stays" in make(source, etc, "uninstall", f"PREFIX={home}")
    assert "\nl2tpns:" in (etc / "passwd").read_text()
