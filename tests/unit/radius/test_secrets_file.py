"""l2tpns.secrets: authentication from a file in pppd's chap-secrets format."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.errors import ConfigError
from l2tpns.radius.secrets_file import SecretsBackend, split_words
from l2tpns.radius.types import Assign
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import chap, login, pap

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


@pytest.mark.parametrize("kind", [pap, chap])
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
