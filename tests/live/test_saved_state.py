"""The daemon starts on saved state that is not as it left it: what it says, what it takes up (root, own namespaces).

Three subscribers are online when it leaves by SIGTERM; something is done to the file; it starts again. Never fatal, and
whoever is not taken up may dial anew.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

from l2tpns.runtime.durable import make_line, read_line
from tests.lab.lac import Lac
from tests.lab.netns import Lab, is_root, three_hosts
from tests.lab.server import Server, Setting
from tests.lab.unprivileged import root_only

pytestmark = [pytest.mark.live, pytest.mark.skipif(not is_root(), reason="needs root for namespaces")]

LNS, HOST = "192.0.2.1", "198.51.100.2"
NAMES = ("ann", "ben", "cat")
SECRETS = "".join(f"{name} * pw *\n" for name in (*NAMES, "dan"))


class Stage:
    """A daemon that has left three subscribers."""

    def __init__(self, lab: Lab) -> None:
        lac_space, space, _ = three_hosts(lab)
        self.settings: dict[str, Setting] = {"save_state": True, "hello_interval": 0, "debug": 3}
        self.server = Server(space, lab.directory / "lns", settings=self.settings, secrets=SECRETS)
        self.state = self.server.directory / "state"
        self.server.start()
        self.lac = Lac(("0.0.0.0", 0), (LNS, 1701), sock=lac_space.socket()).connect()
        self.subscribers = [self.lac.call(name, "pw", auth="pap").wait_online() for name in NAMES]
        assert gevent.get_hub().threadpool.apply(self.server.stop, (signal.SIGTERM,)) == 0
        self.taken_up = False
        self.answering: list[str] = []

    def file(self) -> Path:
        (path,) = self.state.glob("*.state")
        return path

    def rewrite(self, change: Callable[[list[Any]], list[Any] | None]) -> None:
        """Each line anew, None leaves it out; well formed, checksum and all."""
        lines = [read_line(line) for line in self.file().read_bytes().splitlines(keepends=True)]
        changed = [change(list(line)) for line in lines if isinstance(line, list)]
        self.file().write_bytes(b"".join(make_line(line) for line in changed if line is not None))

    def begin(self) -> list[dict[str, Any]]:
        """Start again; what was said of the state."""
        before = len(self.server.log())
        gevent.get_hub().threadpool.apply(self.server.start)
        said = [entry for entry in self.server.log(after=before) if entry["event"].startswith("state_")]
        self.taken_up = any(entry["event"] == "state_resumed" for entry in said)
        print()
        for entry in said:
            print({key: value for key, value in entry.items() if key != "time"})
        self.answering = self.served()
        names = {path.name for path in self.state.iterdir()} - {"lock"}
        print(f"{len(self.answering)} of {len(NAMES)} subscribers are served; in the directory: {sorted(names)}")
        return said

    def served(self) -> list[str]:
        """Who gets an answer from the host beyond."""
        both = zip(NAMES, self.subscribers, strict=True)
        pings = {name: gevent.spawn(subscriber.ping, HOST, timeout=5.0) for name, subscriber in both}
        gevent.joinall(list(pings.values()))
        return [name for name, ping in pings.items() if ping.value is not None]

    def close(self) -> None:
        """Whatever the file was, who comes now is served."""
        other = Lac(("0.0.0.0", 0), (LNS, 1701), "other", endpoint=self.lac.endpoint).connect()
        other.call("dan", "pw", auth="pap").wait_online()
        other.close()
        if not self.taken_up:
            self.lac.alive = False  # nobody would answer it
        self.lac.close()
        gevent.get_hub().threadpool.apply(self.server.stop)
        assert self.server.tracebacks() == ""


def events(said: list[dict[str, Any]]) -> list[str]:
    return [entry["event"] for entry in said]


def test_a_file_as_it_was_left_is_taken_up_whole(stage: Stage) -> None:
    (resumed,) = stage.begin()
    assert (resumed["event"], resumed["sessions"], resumed["clean"]) == ("state_resumed", 3, True)
    assert stage.answering == list(NAMES)


def test_an_older_schema_gives_what_it_had(stage: Stage) -> None:
    def older(line: list[Any]) -> list[Any]:
        if line[0] == "head":
            line[1] -= 1
        if line[0] == "ses":
            for later in ("policy", "sequenced", "usage"):
                del line[1][later]
        return line

    stage.rewrite(older)
    schema, resumed = stage.begin()
    assert (schema["event"], schema["level"], schema["ours"] - schema["schema"]) == ("state_schema", "warning", 1)
    assert resumed["sessions"] == 3
    assert stage.answering == list(NAMES)


def test_a_newer_schema_gives_what_we_know_of_it_and_says_what_we_do_not(stage: Stage) -> None:
    def newer(line: list[Any]) -> list[Any]:
        if line[0] == "head":
            line[1] += 1
        if line[0] == "ses":
            line[1]["colour"] = "green"
        return line

    stage.rewrite(newer)
    with stage.file().open("ab") as file:
        file.write(make_line(["weather", "fine"]))
    schema, unknown, resumed = stage.begin()
    assert (schema["event"], unknown["event"]) == ("state_schema", "state_not_understood")
    assert unknown["what"] == ["SessionRecord.colour", "line 'weather'"]
    assert resumed["sessions"] == 3
    assert stage.answering == list(NAMES)


def test_of_a_truncated_file_what_is_whole_is_taken_up(stage: Stage) -> None:
    octets = stage.file().read_bytes()
    last = octets.rindex(b'["ses",')
    stage.file().write_bytes(octets[: last + 100])
    torn, resumed = stage.begin()
    assert (torn["event"], torn["level"]) == ("state_line_torn", "warning")
    assert (resumed["sessions"], resumed["clean"]) == (2, False)
    assert len(stage.answering) == 2


def test_a_bad_record_costs_one_session_and_the_file_is_kept_for_a_look(stage: Stage) -> None:
    octets = stage.file().read_bytes()
    last = octets.rindex(b'["ses",')
    damaged = octets[: last + 50] + b"\x00\xff" + octets[last + 52 :]
    stage.file().write_bytes(damaged)
    name = stage.file().name
    said = stage.begin()
    assert events(said)[0] == "state_damaged"
    assert (said[0]["level"], said[0]["unreadable"]) == ("error", 1)
    (resumed,) = [entry for entry in said if entry["event"] == "state_resumed"]
    assert (resumed["sessions"], resumed["clean"]) == (2, False)
    assert len(stage.answering) == 2
    stage.server.wait_for("state_set_aside")
    assert (stage.state / name).with_suffix(".damaged").read_bytes() == damaged


def test_a_record_that_makes_no_session_is_named_and_its_subscriber_told(stage: Stage) -> None:
    def without_address(line: list[Any]) -> list[Any]:
        if line[0] == "ses" and line[1]["user"] == "ben":
            del line[1]["address"]
        return line

    stage.rewrite(without_address)
    said = stage.begin()
    refused = said[0]
    assert (refused["event"], refused["level"]) == ("state_record_refused", "error")
    assert "address" in refused["why"]
    assert said[-1]["sessions"] == 2
    stage.subscribers[1].wait_ended()  # by a CDN: it may dial again
    assert stage.answering == ["ann", "cat"]


@pytest.mark.parametrize(
    "whose",
    [
        pytest.param("of another owner", marks=root_only("only root can open another user's file to see whose it is")),
        "that others can read",
    ],
)
def test_a_file_that_is_not_ours_alone_is_not_read(stage: Stage, whose: str) -> None:
    if whose == "of another owner":
        os.chown(stage.file(), 12345, 12345)
        why = "it belongs to user 12345"
    else:
        stage.file().chmod(0o644)
        why = "other users have access (mode 0644)"
    said = stage.begin()
    assert (said[0]["event"], said[0]["level"], said[0]["why"]) == ("state_refused", "error", why)
    assert "state_resumed" not in events(said)
    assert stage.answering == []


def test_a_directory_that_others_can_enter_is_not_used_and_the_service_goes_on(stage: Stage) -> None:
    stage.state.chmod(0o755)
    (error,) = stage.begin()
    assert (error["event"], error["level"]) == ("state_not_kept", "error")
    assert stage.answering == []


@pytest.mark.shows("set state_max_age")
def test_a_state_that_is_too_old_is_refused_as_a_whole(stage: Stage) -> None:
    stage.server.configure({**stage.settings, "state_max_age": 1})
    gevent.sleep(2.5)
    said = stage.begin()
    assert (said[0]["event"], said[0]["level"], said[0]["sessions"]) == ("state_too_old", "error", 3)
    assert said[0]["seconds"] > said[0]["limit"] == 1
    assert events(said)[1:] == ["state_set_aside"]
    assert stage.answering == []
