"""Members of walled gardens: names, addresses, accounting and usage files (manual: Walled Garden).

The kernel is one that remembers; tests/live/test_garden.py has the real one. The module is the one that is shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from l2tpns.policy.garden import MAX_GARDENS, GardenTiming, NullKernel, networks_of
from l2tpns.policy.model import PolicyError
from l2tpns.radius.types import Assign, AuthReply, FramedRoute
from l2tpns.runtime.durable import make_line
from l2tpns.state import records
from l2tpns.state.snapshot import session_record
from l2tpns.subscriber import network
from l2tpns.subscriber.session import Session
from l2tpns.system import iptables
from l2tpns.system.firewall import Table
from l2tpns.system.iptables import Entry
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac
from tests.server.conftest import QUICK, Serve
from tests.server.operators import Desk

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture
def garden_timing() -> GardenTiming:
    return GardenTiming()


@pytest.fixture
def quick_gardens(garden_timing: GardenTiming) -> None:
    """Have gardens check their rules, and have connections forgotten, without waiting long."""
    garden_timing.check_interval = garden_timing.flush_delay = 0.01


class SlowKernel(NullKernel):
    """Builds the sets of a garden, then waits for the lock of iptables."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.lock_released = Event(), Event()
        self.gardens["garden"] = set()

    def build(self, name: str) -> bool:
        new = super().build(name)
        self.begun.set()
        self.lock_released.wait()
        return new


@pytest.fixture
def server(serve: Serve, tmp_path: Path, garden_timing: GardenTiming) -> InProcess:
    """Its plugin is the module that is shipped."""
    server = serve(plugin_dir=str(CHECKOUT / "modules"), accounting_dir=str(tmp_path), garden_timing=garden_timing)
    server.plugins.load("garden")
    return server


@pytest.fixture
def lac(server: InProcess) -> Lac:
    return server.lac(defaults=QUICK).connect()


def session_of(server: InProcess, user: str) -> Session:
    (session,) = server.registry.by_user[user]
    return session


def in_garden(server: InProcess, name: str = "garden") -> set[str]:
    kernel = server.services.gardens.kernel
    assert isinstance(kernel, NullKernel)
    return {str(network) for network in kernel.gardens.get(name, ())}


def nsctl(server: InProcess, line: str) -> tuple[bool, str] | None:
    return server.plugins.control(line.split(), ("127.0.0.1", 1703))


def use(session: Session, up: int, down: int) -> None:
    session.path.in_octets += up
    session.path.out_octets += down


# From Reject into the garden


def test_the_kernel_carries_no_packet_before_the_rules_apply(
    server: InProcess, lac: Lac, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, carried_by_us = NullKernel.add, []

    def note(kernel: NullKernel, name: str, networks: Iterable[IPv4Network]) -> None:
        path = session_of(server, "fred").path
        carried_by_us.append((path.online, path.needs_userspace))
        add(kernel, name, networks)

    monkeypatch.setattr(NullKernel, "add", note)
    lac.call("fred", "wrong").wait_online()
    assert carried_by_us == [(True, True)]
    assert not session_of(server, "fred").path.needs_userspace


def test_a_rejected_user_is_online_with_an_address_and_the_garden_flag(server: InProcess, lac: Lac) -> None:
    call = lac.call("fred", "wrong").wait_online()
    session = session_of(server, "fred")
    assert session.policy.garden == "garden"
    assert in_garden(server) == {f"{call.address}/32"}
    (overruled,) = server.events("verdict_overruled")
    assert overruled["plugin"] == "garden" and overruled["why"] == "go away"
    (entered,) = server.events("garden_entered")
    assert (entered["user"], entered["garden"], entered["by"]) == ("fred", "garden", "plugin garden")


def test_whoever_is_in_a_garden_is_caged_by_the_data_path_too_until_it_is_out(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "wrong").wait_online()
    session = session_of(server, "fred")
    assert session.path.in_garden
    server.services.gardens.enter(session, "poor", by="test")
    assert session.path.in_garden
    server.services.gardens.leave(session, by="test")
    assert not session.path.in_garden


def test_who_has_ended_while_a_garden_was_built_for_it_is_in_none(
    server: InProcess, lac: Lac, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = lac.call("fred", "pw").wait_online()
    session = session_of(server, "fred")

    def build(_: str) -> None:
        call.hangup()
        server.wait(lambda: not server.lns.sessions)

    monkeypatch.setattr(server.services.gardens, "build", build)
    with pytest.raises(PolicyError, match="has ended"):
        server.services.gardens.enter(session, by="test")
    assert not server.events("garden_entered") and kinds(server) == ["start", "stop"]


def test_others_rules_are_not_all_read_to_find_that_ours_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def entries(_: object, chain: str) -> Iterator[Entry]:
        yield Entry(b"", (), b"l2tpns", None)
        raise AssertionError(f"{chain} was read to its end")

    monkeypatch.setattr(iptables, "entries", entries)
    table = Table.__new__(Table)
    table._table = None
    assert table.leads("FORWARD", "l2tpns")


def test_a_user_who_is_accepted_is_in_no_garden(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "pw").wait_online()
    assert session_of(server, "fred").policy.garden == "" and in_garden(server) == set()


def test_without_the_module_a_wrong_password_is_refused_and_the_session_gone(server: InProcess, lac: Lac) -> None:
    server.plugins.remove("garden")
    call = lac.call("fred", "wrong")
    call.wait_ended()
    assert not call.online and server.lns.counters.logins_refused == 1
    server.wait(lambda: server.calm)


def test_a_garden_that_cannot_be_had_lets_nobody_in(server: InProcess, lac: Lac) -> None:
    kernel = server.services.gardens.kernel
    assert isinstance(kernel, NullKernel)
    server.backend.refusal = AuthReply(accepted=False, avpairs=(("garden", "other"),))
    kernel.refuse = "no such table"
    call = lac.call("fred", "wrong")
    call.wait_ended()
    assert not call.online
    assert any("no such table" in line["text"] for line in server.events("plugin_says"))


def test_who_cannot_be_caged_does_not_stay_online(server: InProcess, lac: Lac) -> None:
    server.services.gardens.build()
    server.services.gardens._network_users.pop("garden")
    server.backend.replies["mary"] = AuthReply(accepted=True)
    call = lac.call("mary", "pw").wait_online()
    session = session_of(server, "mary")
    session.policy = type(session.policy)(garden="garden")
    server.services.gardens.begin(session)
    assert not session.path.online
    call.wait_ended()
    (down,) = server.events("session_down")
    assert down["why"] == "walled garden unavailable"


def test_a_kernel_without_netfilter_has_no_garden(server: InProcess, lac: Lac) -> None:
    def refuse() -> NullKernel:
        raise OSError(93, "Protocol not supported")

    server.services.gardens.start(refuse, ())
    lac.call("fred", "pw").wait_online()
    with pytest.raises(PolicyError, match="this kernel has no netfilter: Protocol not supported"):
        server.services.gardens.enter(session_of(server, "fred"), "unpaid", by="test")


@pytest.mark.parametrize("named", ["unpaid", "garden", "yes"])
def test_a_reject_names_the_garden(server: InProcess, lac: Lac, named: str) -> None:
    server.backend.refusal = AuthReply(accepted=False, avpairs=(("garden", named),))
    lac.call("fred", "wrong").wait_online()
    name = "unpaid" if named == "unpaid" else "garden"
    assert session_of(server, "fred").policy.garden == name
    assert len(in_garden(server, name)) == 1


def test_a_reject_with_garden_no_stays_a_reject(server: InProcess, lac: Lac) -> None:
    server.backend.refusal = AuthReply(accepted=False, avpairs=(("garden", "no"),))
    call = lac.call("fred", "wrong")
    call.wait_ended()
    assert not call.online


def test_an_accept_names_a_garden(server: InProcess, lac: Lac) -> None:
    server.backend.replies["fred"] = AuthReply(accepted=True, avpairs=(("garden", "Slow-1"), ("other", "x")))
    call = lac.call("fred", "pw").wait_online()
    assert in_garden(server, "Slow-1") == {f"{call.address}/32"}
    assert server.accounting.records == []


@pytest.mark.parametrize("name", ["", "users", "a b", "x" * 17, "a;reboot", "$(id)", "../x", "größe", "a\n"])
def test_a_name_that_is_none_is_refused(server: InProcess, lac: Lac, name: str) -> None:
    lac.call("fred", "pw").wait_online()
    session = session_of(server, "fred")
    with pytest.raises(PolicyError, match="is not a valid garden name"):
        server.services.gardens.enter(session, name, by="test")
    assert session.policy.garden == "" and set(server.services.gardens.members()) == {"garden"}


def test_there_may_be_so_many_gardens(server: InProcess, lac: Lac) -> None:
    server.wait(lambda: "garden" in server.services.gardens.members())
    for number in range(MAX_GARDENS - 1):
        server.services.gardens.build(f"g{number}")
    with pytest.raises(PolicyError, match=f"the maximum of {MAX_GARDENS} walled gardens is reached"):
        server.services.gardens.build("one-more")


def test_a_chap_challenge_that_is_rejected_leads_into_the_garden_and_there_it_stays(
    serve: Serve, lac: Lac, server: InProcess
) -> None:
    server.config.chap_rechallenge = 1
    call = lac.call("fred", "pw", auth="chap").wait_online()
    session = session_of(server, "fred")
    server.backend.passwords["fred"] = b"another"
    server.wait(lambda: session.policy.garden == "garden")
    server.services.gardens.enter(session, "unpaid", by="test")
    asked = len(server.backend.asked)
    server.wait(lambda: len(server.backend.asked) > asked)
    server.wait(lambda: len(server.events("verdict_overruled")) > 1)
    assert call.online and session.policy.garden == "unpaid"
    assert [kind for kind, _ in server.accounting.records] == ["start", "stop"]


# What belongs to the session


def test_framed_routes_are_caged_with_the_address_and_shared_ones_until_the_last_goes(
    server: InProcess, lac: Lac
) -> None:
    routes = (FramedRoute(IPv4Network("10.9.0.0/16")), FramedRoute(IPv4Network("10.8.1.0/24")))
    for user in ("fred", "mary"):
        server.backend.replies[user] = AuthReply(
            accepted=True, routes=routes if user == "fred" else routes[:1], avpairs=(("garden", "yes"),)
        )
    fred, mary = (lac.call(user, "pw").wait_online() for user in ("fred", "mary"))
    both = {f"{fred.address}/32", f"{mary.address}/32", "10.9.0.0/16", "10.8.1.0/24"}
    assert in_garden(server) == both
    assert [str(network) for network in networks_of(session_of(server, "fred"))][1:] == ["10.9.0.0/16", "10.8.1.0/24"]
    fred.hangup()
    server.wait(lambda: in_garden(server) == {f"{mary.address}/32", "10.9.0.0/16"})
    mary.hangup()
    server.wait(lambda: in_garden(server) == set())


@pytest.mark.usefixtures("quick_gardens")
def test_who_goes_leaves_no_connection_that_the_next_one_with_the_address_would_have(
    server: InProcess, lac: Lac
) -> None:
    call = lac.call("fred", "wrong").wait_online()
    network = IPv4Network(f"{call.address}/32")
    call.hangup()
    kernel = server.services.gardens.kernel
    assert isinstance(kernel, NullKernel)
    server.wait(lambda: network in kernel.forgotten)


@pytest.mark.usefixtures("quick_gardens")
def test_what_somebody_has_flushed_comes_back(server: InProcess, lac: Lac) -> None:
    call = lac.call("fred", "wrong").wait_online()
    server.services.gardens.reconcile()
    kernel = server.services.gardens.kernel
    assert isinstance(kernel, NullKernel)
    del kernel.gardens["garden"]
    server.wait(lambda: server.events("garden_rules_restored"))
    assert in_garden(server) == {f"{call.address}/32"}


# Names and addresses


@pytest.mark.usefixtures("quick_gardens")
def test_members_of_a_garden_that_another_program_flushed_come_back_though_no_rule_is_missing(
    server: InProcess, lac: Lac
) -> None:
    """Without a check, members could leave the garden unnoticed."""
    server.services.gardens.reconcile()
    lac.call("fred", "wrong").wait_online()
    kernel = server.services.gardens.kernel
    assert isinstance(kernel, NullKernel)
    members = set(kernel.gardens["garden"])
    assert members
    kernel.gardens["garden"].clear()
    server.wait(lambda: server.events("garden_members_restored"))
    (line,) = server.events("garden_members_restored")
    assert (line["garden"], line["missing"], line["stale"]) == ("garden", 1, 0)
    assert kernel.gardens["garden"] == members and server.events("garden_rules_restored") == []


def test_a_garden_that_is_being_built_is_not_removed_as_a_leftover(server: InProcess) -> None:
    """Another program holds the lock of iptables meanwhile, so that building yields."""
    gardens, kernel = server.services.gardens, SlowKernel()
    gardens.kernel = kernel
    building = gevent.spawn(gardens.build, "late")
    kernel.begun.wait()
    reconciling = gevent.spawn(gardens.reconcile)
    gevent.idle()
    kernel.lock_released.set()
    gevent.joinall([building, reconciling], raise_error=True)
    assert "late" in kernel.gardens


def test_a_garden_user_neither_ends_a_session_of_its_name_nor_is_ended_by_one(server: InProcess, lac: Lac) -> None:
    real = lac.call("fred", "pw").wait_online()
    stranger = lac.call("fred", "wrong").wait_online()
    assert real.online
    again = lac.call("fred", "pw").wait_online()
    real.wait_ended()
    assert stranger.online and again.online
    assert sorted(bool(session.policy.garden) for session in server.registry.by_user["fred"]) == [
        False,
        True,
    ]


def test_a_garden_user_does_not_get_the_address_that_is_kept_for_its_name(server: InProcess, lac: Lac) -> None:
    real = lac.call("fred", "pw").wait_online()
    address = real.address
    real.hangup()
    server.wait(lambda: server.calm)
    stranger = lac.call("fred", "wrong").wait_online()
    assert stranger.address != address
    assert lac.call("fred", "pw").wait_online().address == address


def test_a_reject_with_an_address_that_somebody_has_takes_it_from_nobody(server: InProcess, lac: Lac) -> None:
    address = IPv4Address("10.77.0.1")
    fixed = AuthReply(accepted=True, assign=Assign.FIXED, address=address)
    server.backend.replies["fred"] = fixed
    server.backend.refusal = AuthReply(accepted=False, assign=Assign.FIXED, address=address)
    real = lac.call("fred", "pw").wait_online()
    stranger = lac.call("fred", "wrong").wait_online()
    assert real.online and real.address == address and stranger.address != address


# Accounting


def kinds(server: InProcess) -> list[str]:
    return [kind for kind, _ in server.accounting.records]


def test_a_garden_user_is_not_accounted(server: InProcess, lac: Lac) -> None:
    call = lac.call("fred", "wrong").wait_online()
    use(session_of(server, "fred"), 1000, 2000)
    assert server.services.usage_files.write() is None
    call.hangup()
    server.wait(lambda: server.calm)
    assert "start" not in kinds(server)
    assert server.services.usage_files.write() is None


def test_leaving_counts_from_zero_ends_others_of_the_name_and_starts_accounting(server: InProcess, lac: Lac) -> None:
    real = lac.call("fred", "pw").wait_online()
    stranger = lac.call("fred", "wrong").wait_online()
    (session,) = (session for session in server.registry.by_user["fred"] if session.policy.garden)
    use(session, 1000, 2000)
    address = session.address
    assert nsctl(server, f"ungarden {session.id}") == (True, f"session {session.id} is out of the walled garden")
    real.wait_ended()
    assert kinds(server) == ["start", "stop", "start"]
    start = server.accounting.records[-1][1]
    assert (start.session_id, start.in_octets, start.out_octets, start.user) == (session.id, 0, 0, b"fred")
    assert stranger.online and session.address == address == stranger.address and in_garden(server) == set()
    use(session, 70, 80)
    path = server.services.usage_files.write()
    assert path is not None and f"fred {address} 1 70 80" in path.read_text()


def test_a_name_whose_octets_are_no_utf_8_can_be_given_and_written(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "wrong").wait_online()
    session = session_of(server, "fred")
    assert nsctl(server, f"ungarden {session.id} fr\udced") == (
        True,
        f"session {session.id} is out of the walled garden",
    )
    assert session.user == "fr\\xed" and session_of(server, "fr\\xed") is session
    (start,) = server.accounting.of("start")
    assert start.user == b"fr\xed" and make_line(["ses", session_record(session)], records.default)


def test_what_is_used_in_the_garden_is_in_no_file_even_if_one_is_written_while_it_leaves(
    server: InProcess, lac: Lac, monkeypatch: pytest.MonkeyPatch
) -> None:
    lac.call("fred", "wrong").wait_online()
    session = session_of(server, "fred")
    use(session, 1000, 2000)
    written = []
    monkeypatch.setattr(network, "end_older", lambda *_: written.append(server.services.usage_files.write()))
    assert nsctl(server, f"ungarden {session.id}") == (True, f"session {session.id} is out of the walled garden")
    assert written == [None] and server.services.usage_files.write() is None


def test_who_ends_while_it_leaves_is_not_accounted(
    server: InProcess, lac: Lac, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = lac.call("fred", "wrong").wait_online()
    session = session_of(server, "fred")

    def end_older(*_: object) -> None:
        call.hangup()
        server.wait(lambda: session.id not in server.lns.sessions)

    monkeypatch.setattr(network, "end_older", end_older)
    nsctl(server, f"ungarden {session.id}")
    assert "start" not in kinds(server) and in_garden(server) == set()


def test_leaving_under_another_name(server: InProcess, lac: Lac) -> None:
    lac.call("guest@new", "wrong").wait_online()
    session = session_of(server, "guest@new")
    other = lac.call("mary", "pw").wait_online()
    assert nsctl(server, f"ungarden {session.id} Mary") == (True, f"session {session.id} is out of the walled garden")
    other.wait_ended()
    assert session_of(server, "mary") is session and session.user == "Mary"
    assert "guest@new" not in server.registry.by_user
    assert server.accounting.of("start")[-1].user == b"Mary"


def test_who_is_put_there_while_online_has_a_stop_and_a_new_start_when_it_leaves(server: InProcess, lac: Lac) -> None:
    call = lac.call("fred", "pw").wait_online()
    session = session_of(server, "fred")
    use(session, 500, 600)
    assert nsctl(server, "garden fred") == (True, f"session {session.id} is in the walled garden")
    (stop,) = server.accounting.of("stop")
    assert (stop.in_octets, stop.out_octets, stop.terminate_cause) == (500, 600, 14)
    path = server.services.usage_files.write()
    assert path is not None and f"fred {call.address} 1 500 600" in path.read_text()
    use(session, 7, 7)
    assert server.services.usage_files.write() is None
    assert nsctl(server, f"ungarden {session.id}") is not None
    first, second = server.accounting.of("start")
    assert first.acct_session_id == stop.acct_session_id != second.acct_session_id
    assert second.in_octets == 0
    call.hangup()
    server.wait(lambda: server.calm)
    assert server.accounting.of("stop")[-1].acct_session_id == second.acct_session_id


def test_from_one_garden_into_another_nothing_is_accounted(server: InProcess, lac: Lac) -> None:
    lac.call("fred", "wrong").wait_online()
    session = session_of(server, "fred")
    assert nsctl(server, f"garden {session.id} unpaid") == (True, f"session {session.id} is in the walled garden")
    assert in_garden(server) == set() and len(in_garden(server, "unpaid")) == 1
    assert server.accounting.records == []
    assert server.services.gardens.members() == {"garden": 0, "unpaid": 1}


# nsctl


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("garden nobody", "session not found"),
        ("garden 65000", "session not found"),
        ("ungarden 65000", "session not found"),
        ("ungarden mary", "not in walled garden"),
        ("garden fred", "already in walled garden"),
        ("garden", "usage: garden USER|SID [NAME]"),
        ("ungarden 1 2 3", "usage: ungarden SID [NEWUSER]"),
        ("garden mary a;b", '"a;b" is not a valid garden name: use up to 16 of a-z, A-Z, 0-9, _ and -'),
    ],
)
def test_what_cannot_be_is_refused_in_the_words_of_the_manuals_server(
    server: InProcess, lac: Lac, line: str, answer: str
) -> None:
    lac.call("fred", "wrong").wait_online()
    lac.call("mary", "pw").wait_online()
    assert nsctl(server, line) == (False, answer)


def test_a_name_with_several_sessions_is_refused(server: InProcess, lac: Lac) -> None:
    for _ in range(2):
        lac.call("fred", "wrong").wait_online()
    answer = nsctl(server, "ungarden fred")
    assert answer is not None and not answer[0] and "name one" in answer[1]


def test_other_commands_are_not_the_modules(server: InProcess) -> None:
    assert nsctl(server, "drop fred") is None
    assert any("garden USER|SID" in line for line in server.plugins.control_help())


# build-garden


@pytest.fixture
def script(server: InProcess, tmp_path: Path) -> Callable[[str], Path]:
    path = tmp_path / "build-garden"

    def write(text: str, mode: int = 0o700) -> Path:
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        server.plugins.settings.assign("garden_script", str(path))
        return path

    return write


def test_build_garden_is_run_with_garden_and_chain_when_a_garden_is_built(
    server: InProcess, lac: Lac, script: Callable[[str], Path], tmp_path: Path
) -> None:
    script(f'echo "$0 $1 $2 $GARDEN $CHAIN" >>{tmp_path}/said; echo a word')
    server.backend.refusal = AuthReply(accepted=False, avpairs=(("garden", "unpaid"),))
    for user in ("fred; reboot", "mary"):
        lac.call(user, "wrong").wait_online()
    said = (tmp_path / "said").read_text()
    assert said == f"{tmp_path}/build-garden unpaid garden_unpaid unpaid garden_unpaid\n"
    assert [line["output"] for line in server.events("plugin_says")] == ["a word\n"]


def test_a_build_garden_that_fails_is_told_and_the_user_is_caged_all_the_same(
    server: InProcess, lac: Lac, script: Callable[[str], Path]
) -> None:
    script("echo no such portal; exit 3")
    server.backend.refusal = AuthReply(accepted=False, avpairs=(("garden", "unpaid"),))
    lac.call("fred", "wrong").wait_online()
    (said,) = server.events("plugin_says")
    assert (said["level"], said["status"], said["output"]) == ("error", 3, "no such portal\n")
    assert len(in_garden(server, "unpaid")) == 1


@pytest.mark.parametrize(("mode", "level"), [(0o644, "info"), (0o777, "error")])
def test_a_build_garden_that_must_not_be_run_is_not_run(
    server: InProcess, script: Callable[[str, int], Path], tmp_path: Path, mode: int, level: str
) -> None:
    script(f"touch {tmp_path}/run", mode)
    server.services.gardens.build("unpaid")
    (said,) = server.events("plugin_says")
    assert said["level"] == level and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"#!/bin/sh\r\necho hello\r\n", "its lines end in CR LF: save it with LF alone"),
        (b"\xef\xbb\xbf#!/bin/sh\necho hello\n", "it begins with a byte order mark: save it as UTF-8 without one"),
        (b"\xff\xfe#\0!\0/\0", "it begins with a byte order mark: save it as UTF-8 without one"),
    ],
)
def test_a_build_garden_that_an_editor_has_spoilt_is_told_in_words(
    server: InProcess, script: Callable[[str], Path], octets: bytes, why: str
) -> None:
    script("").write_bytes(octets)
    server.services.gardens.build("unpaid")
    (said,) = server.events("plugin_says")
    assert (said["level"], said["text"]) == ("error", f"build-garden cannot be run: {why}")


def test_a_build_garden_without_end_is_ended(
    server: InProcess, lac: Lac, script: Callable[[str], Path], tmp_path: Path
) -> None:
    (plugin,) = server.plugins.loaded
    plugin.code.module.__dict__["SCRIPT_TIMEOUT"] = 0.2
    script("sleep 1000")
    server.backend.refusal = AuthReply(accepted=False, avpairs=(("garden", "unpaid"),))
    lac.call("fred", "wrong").wait_online()
    (said,) = server.events("plugin_says")
    assert said["level"] == "error" and said["status"] is None


def test_the_module_builds_the_manuals_garden_and_fills_those_that_are_there(serve: Serve, tmp_path: Path) -> None:
    server = serve(plugin_dir=str(CHECKOUT / "modules"))
    server.services.gardens.build("unpaid")
    path = tmp_path / "build-garden"
    path.write_text(f"#!/bin/sh\necho $1 >>{tmp_path}/said\n")
    path.chmod(0o700)
    server.config.plugin_settings = {"garden_script": str(path)}
    server.plugins.load("garden")
    # Not when the script has written: it may take a while to exit, and the plugin waits for that.
    server.wait(lambda: len(server.events("plugin_says")) == 2)
    assert (tmp_path / "said").read_text() == "garden\nunpaid\n"
    server.plugins.remove("garden")
    server.services.gardens.build("other")
    assert (tmp_path / "said").read_text() == "garden\nunpaid\n"


# The console


@pytest.mark.shows("garden USER|SID", "ungarden USER|SID", "show gardens")
@pytest.mark.shows("garden USER|SID")
@pytest.mark.shows("ungarden USER|SID")
@pytest.mark.shows("show gardens")
def test_the_console_puts_in_shows_and_lets_out(open_desk: Callable[..., Desk]) -> None:
    desk = open_desk()
    lac = desk.server.lac(defaults=QUICK).connect()
    call = lac.call("fred", "pw").wait_online()
    session = session_of(desk.server, "fred")
    operator = desk.plain()

    def do(line: str) -> list[str]:
        return operator.do(line).splitlines()

    assert do("garden fred unpaid") == [f"Session {session.id} (fred) is in walled garden unpaid"]
    assert do(f"garden {session.id} unpaid") == ["% already in walled garden"]
    assert do("show gardens")[1].split() == ["unpaid", "1", "1", "garden_unpaid"]
    (garden,) = [line for line in do(f"show session {session.id}") if "Walled Garden" in line]
    assert garden.split("Garden:")[1].strip() == "YES (unpaid)"
    header, row = do("show session")[:2]
    assert row[header.index(" G ") + 1] == "Y"
    assert do("ungarden FRED") == [f"Session {session.id} (fred) is out of the walled garden"]
    assert do(f"ungarden {session.id}") == ["% not in walled garden"]
    assert do("garden nobody") == ["% User nobody is not connected"]
    assert do("garden fred a;b") == ['% "a;b" is not a valid garden name: use up to 16 of a-z, A-Z, 0-9, _ and -']
    assert call.online
    (entered,) = desk.server.events("garden_entered")
    assert entered["by"].startswith("console ")
