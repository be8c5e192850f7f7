"""A subscriber's login through the whole server: PAP and CHAP (RFC 1334, RFC 1994)."""

from __future__ import annotations

import time

import pytest

from l2tpns.radius.types import AuthReply
from l2tpns.subscriber.services import SessionTiming
from tests.lab.inprocess import InProcess
from tests.lab.lac import Lac, Subscriber
from tests.lab.pppclient import CHAP, CONF_REQ, LCP, PAP, PROTO_REJ, Phase
from tests.server.conftest import QUICK, Serve
from tests.server.subscribers import Ear, refused, say


@pytest.mark.statement(102)
def test_repeated_pap_requests_make_one_question_and_all_get_its_answer(server: InProcess, lac: Lac) -> None:
    server.backend.answering.clear()
    fred = lac.call("fred", "pw", auth="pap")
    ear = Ear(fred)
    ear.deaf_to = (PAP,)
    fred.wait_phase(Phase.AUTHENTICATE)
    for number in range(10):
        say(fred, f"ff03 c023 01{number:02x} 000c 04 66726564 02 7077")
    server.wait(lambda: server.backend.asked)
    server.backend.answering.set()
    fred.wait(lambda: ear.of("in", PAP), what="Authenticate-Ack")
    say(fred, "ff03 c023 0163 000c 04 66726564 02 7077")
    fred.wait(lambda: len(ear.of("in", PAP)) == 2, what="another")
    assert [packet[0] for packet in ear.of("in", PAP)] == [2, 2]
    assert ear.of("in", PAP)[1][1] == 0x63
    assert len(server.backend.asked) == 1


@pytest.mark.statement(102)
def test_a_pap_request_in_another_phase_is_discarded(serve: Serve) -> None:
    server = serve(radius_authtypes=("chap",))
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    ear = Ear(fred)
    say(fred, "ff03 c023 0101 000c 04 66726564 02 7077")
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    assert ear.of("in", PAP) == []
    assert len(server.backend.asked) == 1


@pytest.mark.statement(105)
def test_each_challenge_has_a_new_identifier_and_a_new_value(serve: Serve) -> None:
    server = serve(ppp_restart_time=0.05, ppp_max_configure=4)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw", auth="chap")
    ear = Ear(fred)
    ear.deaf_to = (CHAP,)
    assert fred.wait_ended().result == 3
    challenges = ear.of("in", CHAP, 1)
    assert len(challenges) == 4
    assert len({packet[1] for packet in challenges}) == 4
    assert len({packet[5:21] for packet in challenges}) == 4
    assert challenges[0][21:] == b"lns.example"


@pytest.mark.statement(106)
def test_a_repeated_chap_response_gets_the_same_answer_and_asks_nobody(server: InProcess, lac: Lac) -> None:
    fred = lac.call("fred", "pw", auth="chap")
    ear = Ear(fred)
    fred.wait_online()
    (response,) = ear.of("out", CHAP, 2)
    for _ in range(10):
        say(fred, "ff03 c223", response.hex())
    say(fred, "ff03 c223", "02", f"{response[1] + 1 & 255:02x}", response[2:].hex())  # another identifier
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    assert [packet[:2] for packet in ear.of("in", CHAP, 3, 4)] == [bytes((3, response[1]))] * 11
    assert len(server.backend.asked) == 1
    assert fred.online


@pytest.mark.statement(106)
def test_a_response_to_no_challenge_is_discarded(serve: Serve) -> None:
    server = serve(radius_authtypes=("pap",))
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw").wait_online()
    say(fred, "ff03 c223 0201 0019 10", "00" * 16, "66726564")
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    assert len(server.backend.asked) == 1


@pytest.mark.statement(104, 107)
@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_a_refusal_comes_with_its_message_and_the_cdn_a_moment_later(
    server: InProcess, lac: Lac, session_timing: SessionTiming, auth: str
) -> None:
    assert SessionTiming().refusal_grace == 1.0
    session_timing.refusal_grace = 0.3
    since = time.monotonic()
    eve = lac.call("fred", "wrong", auth=auth)
    ear = Ear(eve)
    eve.wait(lambda: eve.auth_refused, what="a refusal")
    protocol, code = (PAP, 3) if auth == "pap" else (CHAP, 4)
    assert ear.of("in", protocol, code)[0][1] == ear.of("out", protocol)[-1][1]  # its Identifier
    assert eve.auth_message == b"go away"
    assert refused(eve) == (3, 0)
    assert time.monotonic() - since > 0.3
    assert server.counters.logins_refused == 1
    assert server.accounting.records == []


@pytest.mark.statement(107)
def test_a_user_whom_nobody_knows_is_refused_as_well(server: InProcess, lac: Lac) -> None:
    assert refused(lac.call("eve", "pw")) == (3, 0)


@pytest.mark.parametrize("auth", ["pap", "chap"])
def test_when_no_server_answers_the_call_may_be_tried_again_later(server: InProcess, lac: Lac, auth: str) -> None:
    server.backend.silent = True
    assert refused(lac.call("fred", "pw", auth=auth)) == (4, 0)
    assert server.counters.logins_unanswered == 1
    server.backend.silent = False
    assert lac.call("fred", "pw", auth=auth).wait_online().online


def test_names_and_passwords_are_only_octets(server: InProcess, lac: Lac) -> None:
    names = [b"%s%n%d", b"fred;$(reboot)`x`", b"../../etc/passwd", b"\x00\x1b[2J\xff", b"x" * 255]
    for name in names:
        server.backend.passwords[name.decode("utf-8", "backslashreplace")] = name
        lac.call(name, name, auth="pap", calling=name[:64], called=name[:64]).wait_online()
    assert [usage.user for usage in server.accounting.of("start")] == names
    assert server.events("session_up")[0]["user"] == "%s%n%d"
    assert b"\x1b" not in b"".join(server.log.tail(1000))


# MS-CHAP (RFC 2433, RFC 2759)


@pytest.fixture
def ms_server(serve: Serve) -> InProcess:
    return serve(radius_authtypes=("mschapv2", "mschap", "chap", "pap"))


@pytest.mark.statement(109)
@pytest.mark.parametrize("auth", ["mschapv2", "mschap", "chap", "pap"])
def test_a_client_logs_in_by_what_it_can_of_what_is_offered(ms_server: InProcess, auth: str) -> None:
    fred = ms_server.lac(defaults=QUICK).connect().call("fred", "pw", auth=auth).wait_online()
    assert not fred.complaints  # of version 2: the proof is right
    (up,) = ms_server.events("session_up")
    assert up["auth"] == auth


@pytest.mark.statement(286)
@pytest.mark.parametrize("allowed", [("mschapv2", "chap"), ("pap", "mschap", "mschapv2"), ("chap", "pap", "mschapv2")])
@pytest.mark.parametrize("auth", ["mschapv2", "mschap", "chap", "pap"])
def test_a_nak_leads_to_the_common_method_or_to_the_end(serve: Serve, allowed: tuple[str, ...], auth: str) -> None:
    server = serve(radius_authtypes=allowed)
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw", auth=auth)
    if auth in allowed:
        fred.wait_online()
        assert server.events("session_up")[0]["auth"] == auth
    else:
        assert "the subscriber requested authentication by" in fred.wait_ended().text


@pytest.mark.statement(283)
@pytest.mark.parametrize("auth, version", [("mschapv2", 3), ("mschap", 2)])
def test_a_wrong_password_is_a_failure_without_a_second_try(ms_server: InProcess, auth: str, version: int) -> None:
    fred = ms_server.lac(defaults=QUICK).connect().call("fred", "wrong", auth=auth)
    assert refused(fred) == (3, 0)
    words = fred.auth_message.decode().split(" ", 4)
    assert (words[0], words[1], words[3], words[4]) == ("E=691", "R=0", f"V={version}", "M=go away")


@pytest.mark.statement(287)
def test_a_repeated_response_of_version_2_gets_the_same_proof_and_asks_nobody(ms_server: InProcess) -> None:
    fred = ms_server.lac(defaults=QUICK).connect().call("fred", "pw", auth="mschapv2")
    ear = Ear(fred)
    fred.wait_online()
    (response,) = ear.of("out", CHAP, 2)
    say(fred, "ff03 c223", response.hex())
    fred.wait(lambda: len(ear.of("in", CHAP, 3)) == 2, what="the Success again")
    first, second = ear.of("in", CHAP, 3)
    assert first == second and first[4:].startswith(b"S=")
    assert len(ms_server.backend.asked) == 1


@pytest.mark.statement(282)
def test_a_plugin_cannot_make_an_accept_that_version_2_would_believe(ms_server: InProcess) -> None:
    """A session in a garden is one: the client would hang up without the proof, so it is refused in words."""
    ms_server.backend.refusal = AuthReply(accepted=True)
    fred = ms_server.lac(defaults=QUICK).connect().call("eve", "wrong", auth="mschapv2")
    assert refused(fred) == (3, 0)
    assert ms_server.events("auth_refused")[0]["why"] == "accepted without the proof that MS-CHAPv2 needs"


@pytest.mark.parametrize("auth", ["mschapv2", "mschap"])
def test_a_client_is_challenged_again_while_it_is_online(serve: Serve, auth: str) -> None:
    server = serve(radius_authtypes=(auth,))
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw", auth=auth).wait_online()
    ear = Ear(fred)
    (session,) = server.registry.by_user["fred"]
    session.link.authenticator.rechallenge(session.link.now())
    fred.wait(lambda: ear.of("in", CHAP, 3), what="Success")
    assert fred.online and not fred.complaints


@pytest.mark.statement(288)
def test_compression_and_encryption_are_refused_and_the_session_comes_up(ms_server: InProcess) -> None:
    fred = ms_server.lac(defaults=QUICK).connect().call("fred", "pw", auth="mschapv2").wait_online()
    ear = Ear(fred)
    say(fred, "ff03 80fd 0101000a120601000040")
    fred.wait(lambda: ear.of("in", LCP, PROTO_REJ), what="Protocol-Reject")
    (packet,) = ear.of("in", LCP, PROTO_REJ)
    assert packet[4:6] == b"\x80\xfd"
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply")
    assert fred.online


# What the subscriber wants and we do not do


def answering_naks(server: InProcess, nak: str) -> Subscriber:
    """A subscriber that always requests another authentication protocol."""
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    ear = Ear(fred)
    ear.deaf_to = (LCP,)
    for heard in range(10):
        fred.wait(
            lambda heard=heard: len(ear.of("in", LCP, CONF_REQ)) > heard or fred.ended,
            what="Configure-Request or the end",
        )
        if fred.ended is not None:
            break
        request = ear.of("in", LCP, CONF_REQ)[heard]
        say(fred, f"ff03 c021 03{request[1]:02x} {4 + len(nak) // 2:04x} {nak}")
    return fred


@pytest.mark.statement(95)
@pytest.mark.parametrize(
    "allowed, nak, words, wanted",
    [
        (
            ("chap", "pap"),
            "0305c22381",
            "the subscriber requested authentication by MS-CHAPv2, not by CHAP-MD5 or PAP",
            ["Authentication-Protocol MS-CHAPv2"],
        ),
        (
            ("chap",),
            "0304c023",
            "the subscriber requested authentication by PAP, not by CHAP-MD5",
            ["Authentication-Protocol PAP"],
        ),
    ],
)
def test_a_login_that_ends_over_the_kind_of_authentication_names_it(
    serve: Serve, allowed: tuple[str, ...], nak: str, words: str, wanted: list[str]
) -> None:
    server = serve(radius_authtypes=allowed)
    assert answering_naks(server, nak).ended.text == words
    server.wait(lambda: server.events("session_down"))
    (down,) = server.events("session_down")
    assert (down["cause"], down["phase"], down["why"]) == ("auth_protocol_refused", "lcp", words)
    assert (down["wanted"], down["level"]) == (wanted, "info")


@pytest.mark.parametrize("protocol, name", [("c023", "PAP"), ("c223", "CHAP")])
def test_a_client_that_rejects_the_protocol_it_agreed_to_is_ended_with_its_name(
    serve: Serve, protocol: str, name: str
) -> None:
    server = serve(radius_authtypes=(name.lower(),))
    fred = server.lac(defaults=QUICK).connect().call("fred", "pw")
    ear = Ear(fred)
    ear.deaf_to = (PAP, CHAP)
    fred.wait_phase(Phase.AUTHENTICATE)
    fred.send_echo()
    fred.wait(lambda: fred.echo_replies, what="Echo-Reply: the link is open")
    say(fred, f"ff03 c021 0801 0006 {protocol}")
    assert fred.wait_ended().text == f"the subscriber rejected {name}"


def test_a_login_that_fails_says_what_else_the_client_did_not_get(server: InProcess, lac: Lac) -> None:
    eve = lac.call("fred", "wrong", auth="pap")
    ear = Ear(eve)
    windows = "ff03 c021 0177 0011 0d03 06 1104 064e 0506 01020304"

    def ask_too_much(way: str, protocol: int, packet: bytes) -> bytes | None:
        """Send a first request like that of Windows, then continue normally."""
        if (way, protocol, packet[0]) == ("out", LCP, CONF_REQ) and not ear.of("out", LCP, CONF_REQ):
            say(eve, windows)
        return ear(way, protocol, packet)

    eve.on_frame = ask_too_much
    assert refused(eve) == (3, 0)
    assert server.events("session_down")[0]["wanted"] == ["Callback CBCP", "Multilink-MRRU 1614"]
