"""The nsctl client, run as a process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gevent import socket, subprocess

from l2tpns.nsctl import __main__ as nsctl
from tests.server.nsctl_stage import HELP, NOTE, OK, SECRET, Stage, sealed


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as stage:
        yield stage


def test_the_client_prints_what_was_done_and_exits_with_0(stage: Stage) -> None:
    assert stage.local("note", "one") == (0, "", "")
    assert stage.local("garden", "12") == (0, "garden 12\n", "")
    assert stage.local("load_plugin", "garden") == (0, "plugin garden loaded\n", "")
    status, said, _ = stage.local("help")
    assert status == 0
    assert "note TEXT - make a note\n" in said


def test_the_client_tells_failures_apart_by_exit_status(stage: Stage) -> None:
    assert stage.local("fail") == (1, "", "nsctl: session not found\n")
    assert stage.local("unload_plugin", "garden") == (1, "", "nsctl: garden is not loaded\n")
    assert stage.local("load_plugin") == (1, "", "nsctl: load_plugin needs the name of one plugin\n")
    status, _, said = stage.local("foo")
    assert (status, said) == (5, 'nsctl: unknown command "foo": no plugin that is loaded knows it\n')


def test_the_client_says_that_nothing_listens(stage: Stage) -> None:
    port = stage.port
    stage.server.stop()
    assert stage.nsctl("-h", f"127.0.0.1:{port}", "help") == (
        4,
        "",
        f"nsctl: 127.0.0.1:{port} refuses: nothing listens there\n",
    )


def test_the_client_gives_up_when_its_time_is_over(stage: Stage) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        status, _, said = stage.nsctl("-t", "0.1", "-h", f"127.0.0.1:{port}", "note", "one")
        assert deaf.recv(65535) == NOTE
    assert (status, said) == (3, f"nsctl: no answer from 127.0.0.1:{port} within 0.1 s\n")


def test_a_lost_request_is_made_up_for(stage: Stage) -> None:
    on_datagram = stage.server.on_datagram
    heard: list[bytes] = []

    def lossy(sock: Any, octets: bytes, source: tuple[str, int]) -> None:
        heard.append(octets)
        if len(heard) > 1:
            on_datagram(sock, octets, source)

    stage.server.on_datagram = lossy  # type: ignore[method-assign]
    assert stage.local("note", "one") == (0, "", "")
    assert len(stage.plugins.obeyed) == 1
    assert heard[0] == heard[1]


def test_the_manuals_form_names_the_host_first(stage: Stage) -> None:
    assert stage.nsctl(f"127.0.0.1:{stage.port}", "garden", "12") == (0, "garden 12\n", "")
    assert stage.nsctl(f"localhost:{stage.port}", "ungarden", "12") == (0, "ungarden 12\n", "")


@pytest.mark.parametrize(
    ("argv", "words", "host"),
    [
        (["192.0.2.1", "garden", "12"], ("garden", "12"), "192.0.2.1"),
        (["-t", "1", "lns1", "ungarden", "12"], ("ungarden", "12"), "lns1"),
        (["garden", "12"], ("garden", "12"), "127.0.0.1"),
        (["ungarden", "12", "fred"], ("ungarden", "12", "fred"), "127.0.0.1"),
        (["-h", "lns1", "drop", "garden", "x"], ("drop", "garden", "x"), "lns1"),
        (["drop", "garden"], ("drop", "garden"), "127.0.0.1"),
        (["drop", "fred", "-t", "-h"], ("drop", "fred", "-t", "-h"), "127.0.0.1"),
    ],
)
def test_the_first_word_is_a_host_only_before_garden_or_ungarden_with_one_argument_and_without_h(
    argv: list[str], words: tuple[str, ...], host: str
) -> None:
    options = nsctl.parse_arguments(argv)
    assert (options.words, options.host) == (words, host)


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        ([], "no command"),
        (["-x"], "option -x not recognized"),
        (["-h"], "option -h requires argument"),
        (["-h", "a:b", "help"], '"a:b" is no HOST or HOST:PORT'),
        (["-h", ":1702", "help"], "no HOST"),
        (["-h", "a:65536", "help"], "no HOST"),
        (["-t", "soon", "help"], '"soon" is no number of seconds'),
        (["-t", "0", "help"], "no number"),
        (["-t", "nan", "help"], "no number"),
    ],
)
def test_a_mistake_on_the_command_line_is_explained(argv: list[str], what: str) -> None:
    with pytest.raises(nsctl.UsageError, match=what):
        nsctl.parse_arguments(argv)


def test_the_octets_are_shown_on_demand(stage: Stage) -> None:
    status, said, shown = stage.nsctl("-d", "-t", "20", "-h", f"127.0.0.1:{stage.port}", "note", "one")
    assert (status, said) == (0, "")
    assert shown == f"sent {len(NOTE)} octets: {NOTE.hex()}\nreceived 5 octets: {OK.hex()}\n"


def test_what_a_plugin_says_does_not_steer_the_terminal(stage: Stage) -> None:
    assert stage.local("escape") == (0, "?[2Jfred\nmary\n", "")


def test_the_client_has_the_key_from_a_file_that_is_its_owners_alone(stage: Stage, tmp_path: Path) -> None:
    stage.config.nsctl_secret = SECRET
    stage.now = time.time()
    stage.server._not_before = 0
    key = tmp_path / "key"
    key.write_text(SECRET + "\n")
    key.chmod(0o600)
    where = ("-t", "20", "-h", f"127.0.0.1:{stage.port}")
    assert stage.nsctl("-k", str(key), *where, "garden", "1") == (0, "garden 1\n", "")
    assert stage.nsctl(*where, "garden", "1", NSCTL_KEY_FILE=str(key)) == (0, "garden 1\n", "")
    stage.now += 100
    status, _, said = stage.nsctl("-k", str(key), *where, "garden", "1")
    assert (status, said[:43]) == (4, "nsctl: not authorised: the clocks differ by")
    key.chmod(0o640)
    assert stage.nsctl("-k", str(key), *where, "garden", "1") == (
        2,
        "",
        f"nsctl: {key} is open to others: its mode must be 0600\n",
    )


@pytest.mark.parametrize("text", ["", "short\n", "\nsecond line that is long enough\n"])
def test_a_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    key = tmp_path / "key"
    key.write_text(text)
    key.chmod(0o600)
    with pytest.raises(nsctl.UsageError, match="16 octets"):
        nsctl.read_key(str(key))
    with pytest.raises(nsctl.UsageError, match="No such file"):
        nsctl.read_key(str(tmp_path / "none"))
    with pytest.raises(nsctl.UsageError, match="directory"):
        nsctl.read_key(str(tmp_path))


def test_answers_that_are_not_ours_are_passed_over() -> None:
    key, nonce = SECRET.encode(), bytes(16)
    right = sealed(OK, direction=2)
    assert nsctl._read(right, key, nonce) is not None
    for wrong in (
        OK,
        sealed(OK),
        sealed(OK, direction=2, nonce=bytes(15) + b"1"),
        right[:-1],
        sealed(HELP, direction=2),
    ):
        assert nsctl._read(wrong, key, nonce) is None
    assert nsctl._read(OK, b"", nonce) is not None
    assert nsctl._read(HELP, b"", nonce) is None


def test_the_client_starts_without_the_servers_libraries() -> None:
    code = "import sys, l2tpns.nsctl; print({'gevent', 'pyroute2', 'structlog', 'l2tpns.config'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, cwd=Path(nsctl.__file__).parents[1]
    )
    assert done.stdout == b"set()\n"
