"""`make install` and `make uninstall` into directories of the test's own."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.netns import machines_network
from tests.lab.server import CHECKOUT

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


def make(source: Path, *argv: str) -> str:
    with machines_network():
        done = subprocess.run(["make", *argv], cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_staged_installation_works_where_it_lands_and_names_no_staging_directory(
    source: Path, tmp_path: Path
) -> None:
    stage, home = tmp_path / "stage", tmp_path / "opt"
    make(source, "install", f"DESTDIR={stage}", f"PREFIX={home}")
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
    source: Path, tmp_path: Path
) -> None:
    prefix = f"PREFIX={tmp_path}"
    etc, plugin = tmp_path / "etc/l2tpns", tmp_path / "lib/l2tpns/example.py"
    names = sorted(file.name for file in (source / "etc/l2tpns").iterdir())
    make(source, "install", prefix)
    assert sorted(file.name for file in etc.iterdir()) == names
    assert plugin.exists()

    (etc / "example").write_text("the operator's\n")
    (etc / "unwanted").unlink()
    for name in ("example", "unwanted", "untouched"):
        (source / "etc/l2tpns" / name).write_text("the next release's default\n")
    said = make(source, "install", prefix)
    assert (etc / "example").read_text() == "the operator's\n"
    assert (etc / "example.new").read_text() == "the next release's default\n"
    assert "example was edited and stays" in said
    assert not (etc / "unwanted").exists()
    assert (etc / "untouched").read_text() == "the next release's default\n"

    (tmp_path / "lib/l2tpns/own.py").write_text('"""A plugin of the site."""\n')
    make(source, "uninstall", prefix)
    left = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file())
    assert left == ["etc/l2tpns/example", "lib/l2tpns/own.py"]
