"""l2tpns.secrets: authentication from a file in pppd's chap-secrets format."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import ConfigError
from l2tpns.proto.ppp.credentials import MS_CHAP_2, Credentials
from l2tpns.radius.secrets_file import SecretsBackend, split_words
from l2tpns.radius.types import Assign
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import chap, login, mschap, mschapv2, pap

FILE = r"""
# user      server  secret          address
alice       *       "open sesame"   10.0.0.5
bob         lns1    hunter2         *
bob         *       elsewhere
carol       lns2    secret          # only there
dave        *       secret          -
"e v e"     *       a\"b\\c
empty       *       ""
"""


@pytest.fixture
def backend(tmp_path):
    path = tmp_path / "l2tpns.secrets"
    path.write_text(FILE)
    path.chmod(0o600)
    return SecretsBackend(path, "lns1", MemoryLog().get())


@pytest.mark.parametrize("kind", [pap, chap, mschap, mschapv2])
@pytest.mark.parametrize(
    "name, password, accepted",
    [
        (b"alice", b"open sesame", True),
        (b"alice", b"open", False),
        (b"alice", b"", False),
        (b"bob", b"hunter2", True),
        (b"bob", b"elsewhere", False),  # the line for this server goes before *
        (b"carol", b"secret", False),
        (b"dave", b"secret", False),
        (b"e v e", b'a"b\\c', True),
        (b"empty", b"", False),
        (b"nobody", b"", False),
        (b"nobody", b"\0", False),
        (b"", b"", False),
        (b"*", b"", False),
    ],
)
def test_names_secrets_and_servers_decide(backend, kind, name, password, accepted):
    assert backend.authenticate(login(kind(name, password))).accepted is accepted


@pytest.mark.statement(280)
def test_ms_chap_version_2_has_the_proof_of_rfc_2759(tmp_path):
    path = tmp_path / "l2tpns.secrets"
    path.write_text("User * clientPass\n")
    path.chmod(0o600)
    challenge = bytes.fromhex("5b5d7c7d7b3f2f3e3c2c602132262628")
    value = bytes.fromhex(
        "21402324255e262a28295f2b3a337c7e 0000000000000000 82309ecd8d708b5ea08faa3981cd83544233114a3d85d6df 00"
    )
    credentials = Credentials(0xC223, b"User", b"", 17, challenge, value, MS_CHAP_2)
    reply = SecretsBackend(path, "lns1", MemoryLog().get()).authenticate(login(credentials))
    assert reply.accepted and reply.proof == b"S=407A5589115FD0D6209F510FE9C04566932CDA56"


@pytest.mark.statement(284)
@pytest.mark.parametrize("kind", [mschap, mschapv2])
def test_ms_chap_finds_a_user_with_a_domain_in_the_line_without_it(backend, kind):
    assert backend.authenticate(login(kind(b"DOM\\alice", b"open sesame"))).accepted
    assert not backend.authenticate(login(kind(b"DOM\\alice", b"open"))).accepted
    assert not backend.authenticate(login(chap(b"DOM\\alice", b"open sesame"))).accepted


def test_a_response_by_lan_managers_hash_alone_is_refused(backend):
    credentials = mschap(b"alice", b"open sesame")
    without_nt = replace(credentials, response=credentials.response[:-1] + b"\0")
    assert not backend.authenticate(login(without_nt)).accepted


def test_an_address_is_fixed_and_without_one_the_pool_gives_it(backend):
    reply = backend.authenticate(login(pap(b"alice", b"open sesame")))
    assert (reply.assign, reply.address) == (Assign.FIXED, IPv4Address("10.0.0.5"))
    reply = backend.authenticate(login(pap(b"bob", b"hunter2")))
    assert (reply.assign, reply.address) == (Assign.POOL, None)


def test_a_chap_answer_to_another_identifier_is_wrong(backend):
    good = chap(b"alice", b"open sesame", identifier=7)
    stale = type(good)(good.protocol, good.name, identifier=8, challenge=good.challenge, response=good.response)
    assert not backend.authenticate(login(stale)).accepted


def test_a_star_stands_for_every_user(tmp_path):
    path = tmp_path / "secrets"
    path.write_text("* * shared\nalice * own\n")
    backend = SecretsBackend(path, "lns1", MemoryLog().get())
    assert backend.authenticate(login(pap(b"anyone", b"shared"))).accepted
    assert backend.authenticate(login(pap(b"alice", b"own"))).accepted
    assert not backend.authenticate(login(pap(b"alice", b"shared"))).accepted


@pytest.mark.parametrize(
    "line, word",
    [
        ("alice *", "needs user"),
        ('alice * "secret', "not closed"),
        ("alice * secret 10.0.0", "neither"),
        ("alice * secret 10.0.0.5 10.0.0.6", "only one"),
        ("alice * @/etc/secret", "@file"),
        ("alice * secret\\", "backslash"),
    ],
)
def test_a_wrong_line_is_named_and_the_old_users_stay(backend, tmp_path, line, word):
    (tmp_path / "l2tpns.secrets").write_text(f"# one\n{line}\n")
    with pytest.raises(ConfigError, match=rf"l2tpns\.secrets, line 2: .*{word}"):
        backend.reload()
    assert backend.authenticate(login(pap(b"alice", b"open sesame"))).accepted


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ConfigError, match=r"l2tpns\.secrets: No such file"):
        SecretsBackend(tmp_path / "l2tpns.secrets", "lns1", MemoryLog().get())


def test_reload_takes_new_secrets(backend, tmp_path):
    (tmp_path / "l2tpns.secrets").write_text("alice * new\n")
    backend.reload()
    assert backend.authenticate(login(pap(b"alice", b"new"))).accepted


def test_a_file_that_others_can_read_is_told(tmp_path):
    path = tmp_path / "secrets"
    path.write_text("alice * secret\n")
    path.chmod(0o644)
    log = MemoryLog()
    SecretsBackend(path, "lns1", log.get())
    assert log.records("secrets_file_open_to_others")
    assert b"alice" not in b"".join(log.tail(10))
    path.chmod(0o640)  # root:l2tpns, under setuid
    log = MemoryLog()
    SecretsBackend(path, "lns1", log.get())
    assert not log.records("secrets_file_open_to_others")


@given(st.binary(max_size=60))
def test_any_line_is_words_or_an_error_of_value(line):
    try:
        split_words(line)
    except ValueError:
        pass
