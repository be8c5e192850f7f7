"""The files that an operator writes, saved by whatever editor: what is first in them is not lost, and what is no text
is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2tpns.config.file import make_config, parse_file
from l2tpns.console.operators import Operators
from l2tpns.errors import ConfigError, PluginError
from l2tpns.nsctl import __main__ as nsctl
from l2tpns.plugins import loader
from l2tpns.radius.secrets_file import SecretsBackend
from l2tpns.runtime.text_file import Line, is_wide, oddity, split_lines
from l2tpns.subscriber.pool import read_layout
from tests.lab.memory_log import MemoryLog
from tests.lab.radius_parts import login, pap

KEY = "0123456789abcdef"


@dataclass(frozen=True)
class Kind:
    """One of the operator's files: some lines, and what they say to the part of the server that reads them."""

    text: str
    says: object
    read: Callable[[Path], object]


def config(path: Path) -> object:
    made = make_config(parse_file(path))
    return made.hostname, made.radius_secret, made.plugins, dict(made.plugin_settings)


def secrets(path: Path) -> object:
    path.chmod(0o600)
    backend = SecretsBackend(path, "lns1", MemoryLog().get())
    pairs = ((b"fred", b"one"), (b"mary", b"two"), (b"zoe", b"three"))
    return [backend.authenticate(login(pap(*pair))).accepted for pair in pairs]


def users(path: Path) -> object:
    path.chmod(0o600)
    found = Operators(path, MemoryLog().get()).read()
    if found.broken:
        raise ConfigError(found.broken)
    return found.passwords, found.enable


def key(path: Path) -> object:
    path.chmod(0o600)
    try:
        return nsctl.read_key(str(path))
    except nsctl.UsageError as mistake:
        raise ConfigError(str(mistake)) from None


KINDS = {
    "l2tpns.cfg": Kind(
        'set hostname "lns1"\nset radius_secret "s s"\nload plugin "httpauth"\nset httpauth_url "http://h/"\n',
        ("lns1", "s s", ("httpauth",), {"httpauth_url": "http://h/"}),
        config,
    ),
    "l2tpns.cfg that begins with a comment": Kind(
        "# mine\nset hostname lns1\n# the end\n", ("lns1", "", (), {}), config
    ),
    "l2tpns.ip_pool": Kind(
        "10.9.0.8/30\n10.9.1.1\n",
        ["10.9.0.9", "10.9.0.10", "10.9.1.1"],
        lambda path: [loader_address(number) for number in read_layout(path)],
    ),
    "l2tpns.secrets": Kind('fred * "one" *\nmary * two\nzoe lns1 three *\n', [True, True, True], secrets),
    "l2tpns.users": Kind("admin:pw\nzoe:x\nenable:root\n", ({"admin": "pw", "zoe": "x"}, "root"), users),
    "l2tpns.users that begins with enable": Kind("enable:root\nadmin:pw\n", ({"admin": "pw"}, "root"), users),
    "a key of nsctl": Kind(f"{KEY}\nwhat follows is not looked at\n", KEY.encode(), key),
}

FORMS: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "with a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "with a byte order mark at each line": lambda text: b"".join(
        b"\xef\xbb\xbf" + line for line in text.encode().splitlines(keepends=True)
    ),
    "CR LF": lambda text: text.replace("\n", "\r\n").encode(),
    "with a byte order mark and CR LF": lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
    "without an end of the last line": lambda text: text.rstrip("\n").encode(),
    "CR LF without an end of the last line": lambda text: text.rstrip("\n").replace("\n", "\r\n").encode(),
    "with a stray end of line": lambda text: text.encode() + b"\r\n\r\n\n",
}

WIDE: dict[str, Callable[[str], bytes]] = {
    "UTF-16 of Windows": lambda text: b"\xff\xfe" + text.encode("utf-16-le"),
    "UTF-16, big end first": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "UTF-16 without a mark": lambda text: text.encode("utf-16-le"),
    "UTF-16, big end first, without a mark": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "UTF-32, big end first": lambda text: b"\x00\x00\xfe\xff" + text.encode("utf-32-be"),
}


def loader_address(number: int) -> str:
    return ".".join(str(octet) for octet in number.to_bytes(4, "big"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", KINDS)
def test_every_file_says_the_same_in_every_form_of_text(tmp_path: Path, name: str, form: str) -> None:
    kind = KINDS[name]
    path = tmp_path / "file"
    path.write_bytes(FORMS[form](kind.text))
    assert kind.read(path) == kind.says


@pytest.mark.parametrize("form", WIDE)
@pytest.mark.parametrize("name", KINDS)
def test_a_file_in_utf_16_is_refused_by_name(tmp_path: Path, name: str, form: str) -> None:
    kind = KINDS[name]
    path = tmp_path / "file"
    path.write_bytes(WIDE[form](kind.text))
    with pytest.raises(ConfigError) as caught:
        kind.read(path)
    assert str(caught.value) == f"{path}: is UTF-16 or UTF-32: save it as UTF-8"


@pytest.mark.parametrize("name", [name for name in KINDS if name.startswith("l2tpns.")])
def test_a_nul_is_refused_by_file_and_line(tmp_path: Path, name: str) -> None:
    kind = KINDS[name]
    lines = kind.text.encode().splitlines(keepends=True)
    path = tmp_path / "file"
    path.write_bytes(lines[0] + b"\0" + b"".join(lines[1:]))
    with pytest.raises(ConfigError) as caught:
        kind.read(path)
    assert str(caught.value) == f"{path}:2: holds a NUL octet: the file is damaged, or not text"


# The configuration


def told(path: Path, octets: bytes) -> tuple[str, ...]:
    """Warnings or errors of a configuration, without its path."""
    path.write_bytes(octets)
    try:
        found = parse_file(path).warnings
    except ConfigError as error:
        found = tuple(str(error).split("\n"))
    return tuple(line.removeprefix(f"{path}:") for line in found)


NBSP = "holds the character U+00A0 (no-break space), which is neither a blank nor a quotation mark here"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("set\u00a0hostname lns1", NBSP),
        ("set hostname\u00a0lns1", NBSP),
        ("set l2tp_secret hush\u00a0", NBSP),
        ("\u00a0set hostname lns1", NBSP),
        ("set l2tp_secret \u201chush\u201d", "U+201C (left double quotation mark)"),
        ("set l2tp_secret hu\u200bsh", "U+200B (zero width space)"),
        ('set l2tp_secret "hu\u00a0sh \u201cx\u201d"', ""),  # quoted: meant
        ("# it\u00a0is \u201cmine\u201d", ""),
    ],
)
def test_a_character_that_looks_like_a_blank_or_a_quotation_mark_is_named(
    tmp_path: Path, line: str, words: str
) -> None:
    found = told(tmp_path / "l2tpns.cfg", f"set debug 3\n{line}\n".encode())
    assert len(found) == bool(words)
    assert all(text.startswith("2: ") and words in text for text in found)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'set guest_account "fr\xe9d"', "guest_account"),
        (b'set multi_hostname "k\xf6ln"', "multi_hostname"),
        (b'set tundevicename "t\xfcn0"', "tundevicename"),
        (b"set debug \xff", "debug"),
        (b"set d\xe9bug 3", "Unknown variable"),
        (b'load plugin "httpauth"\nset httpauth_url "http://k\xf6ln/"', "the plugin gets octets"),
        (b'set radius_secret "p\xe4ss"', ""),  # octets, as RADIUS has them
        (b'load plugin "httpauth"\nset httpauth_password "p\xe4ss"', ""),
        (b"# M\xfcller", ""),
    ],
)
def test_a_value_that_is_not_utf_8_is_named_where_it_has_to_be_text(tmp_path: Path, line: bytes, words: str) -> None:
    found = told(tmp_path / "l2tpns.cfg", line + b"\n")
    assert len(found) == bool(words)
    number = line.count(b"\n") + 1
    assert all(text.startswith(f"{number}: ") and words in text for text in found)


def test_trailing_blanks_are_nothing_to_the_configuration(tmp_path: Path) -> None:
    assert told(tmp_path / "l2tpns.cfg", b"set debug 3 \t \r\n  \t\nset hostname lns1\t") == ()


# The pool


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("10.9.0.0\u00a0/24", NBSP),
        ("10.9.0.0/\u200b24", "U+200B (zero width space)"),
        ("10.9.0.0/24 k\udcf6ln", "k\\xf6ln"),
    ],
)
def test_a_line_of_the_pool_that_looks_right_and_is_not_is_explained(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "l2tpns.ip_pool"
    path.write_bytes(f"10.8.0.0/24\n{line}\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        read_layout(path)
    assert str(caught.value).startswith(f"{path}:2: ") and words in str(caught.value)


def test_blanks_of_any_kind_around_a_range_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "l2tpns.ip_pool"
    path.write_bytes("\u00a010.8.0.0/24\u00a0 \t\n \u00a0\n10.9.0.1 # k\udcf6ln\n".encode("utf-8", "surrogateescape"))
    assert len(list(read_layout(path))) == 255


# The secrets


def doubts(path: Path, text: str) -> list[tuple[int, str]]:
    log = MemoryLog()
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    SecretsBackend(path, "lns1", log.get())
    return [(line["line"], line["why"]) for line in log.records("secrets_line_doubtful")]


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("fred * hush\u00a0", 1),
        ("\u00a0fred * hush", 1),
        ("fred * \u201chush\u201d", 1),
        ('fred * "hu\u00a0sh"', 0),
        ("fred * hush # is\u00a0it?", 0),
        ("fr\udce9d * h\udcfcsh \t ", 0),  # octets, as the subscriber sends them
    ],
)
def test_a_secret_with_a_character_that_nobody_sees_is_warned_of_without_its_words(
    tmp_path: Path, line: str, count: int
) -> None:
    found = doubts(tmp_path / "l2tpns.secrets", f"# first\n{line}\n")
    assert len(found) == count
    assert all(number == 2 and "hush" not in why and "U+" in why for number, why in found)


def test_a_line_of_secrets_that_does_not_part_says_why(tmp_path: Path) -> None:
    path = tmp_path / "l2tpns.secrets"
    path.write_text("fred\u00a0*\u00a0hush\n")
    with pytest.raises(ConfigError) as caught:
        SecretsBackend(path, "lns1", MemoryLog().get())
    assert str(caught.value) == f"{path}, line 1: needs user, server and secret; the line {NBSP}"


def test_names_and_secrets_that_are_not_utf_8_are_octets(tmp_path: Path) -> None:
    path = tmp_path / "l2tpns.secrets"
    path.write_bytes(b"fr\xe9d * h\xfcsh\r\n")
    backend = SecretsBackend(path, "lns1", MemoryLog().get())
    assert backend.authenticate(login(pap(b"fr\xe9d", b"h\xfcsh"))).accepted


# The console's users


@pytest.mark.parametrize(
    ("line", "password", "words"),
    [
        ("fred:pw ", "pw ", "ends in a blank, which belongs to the password"),
        ("fred:pw\t", "pw\t", "ends in a blank, which belongs to the password"),
        ("fred:pw\u00a0", "pw\u00a0", "ends in a blank, which belongs to the password"),
        ("fred:p\u00a0w", "p\u00a0w", NBSP),
        ("\u00a0fred :pw", "pw", NBSP),
        ("fred:$6$abcdefgh$xyz  ", "$6$abcdefgh$xyz", ""),  # no hash ends in a blank
        ("fred:p\udce9w", "p\udce9w", ""),
    ],
)
def test_a_password_whose_end_nobody_sees_is_kept_and_warned_of(
    tmp_path: Path, line: str, password: str, words: str
) -> None:
    path = tmp_path / "l2tpns.users"
    path.write_bytes(f"{line}\n".encode("utf-8", "surrogateescape"))
    path.chmod(0o600)
    found = Operators(path, MemoryLog().get()).read()
    assert found.passwords == {"fred": password}
    assert found.warnings == ((f"{path}:1: {words}",) if words else ())


def test_users_that_are_no_text_let_nobody_in_and_the_log_says_why(tmp_path: Path) -> None:
    path, log = tmp_path / "l2tpns.users", MemoryLog()
    path.write_bytes(b"\xff\xfe" + "fred:pw\n".encode("utf-16-le"))
    people = Operators(path, log.get())
    assert not people.read().open
    assert not people.check("fred", "pw")
    assert "UTF-16" in log.records("console_users_unreadable")[0]["why"]


# Plugins


@pytest.mark.parametrize("form", [form for form in FORMS if "each" not in form])
def test_a_plugin_may_be_saved_in_every_form_of_text(tmp_path: Path, form: str) -> None:
    (tmp_path / "p.py").write_bytes(FORMS[form]("plugin_api_version = 1\ndef plugin_pre_auth(event):\n    pass\n"))
    assert list(loader.read("p", tmp_path).functions) == ["pre_auth"]


@pytest.mark.parametrize("form", WIDE)
def test_a_plugin_in_utf_16_is_refused_by_name(tmp_path: Path, form: str) -> None:
    (tmp_path / "p.py").write_bytes(WIDE[form]("plugin_api_version = 1\n"))
    with pytest.raises(PluginError, match=r"p\.py: is UTF-16 or UTF-32: save it as UTF-8"):
        loader.read("p", tmp_path)


# The reader itself


@given(st.binary(max_size=80))
def test_any_octets_are_lines_or_an_error_that_names_the_file(octets: bytes) -> None:
    try:
        lines = split_lines(octets, "file")
    except ConfigError as error:
        assert str(error).startswith("file:")
        return
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert not any(set(line.octets) & {0, 10, 13} for line in lines)


@given(st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=40))
def test_text_in_utf_8_is_never_taken_for_utf_16(text: str) -> None:
    assert not is_wide(text.encode())


def test_a_line_is_its_text() -> None:
    assert split_lines(b"\xef\xbb\xbfa\n\nb\xff", "file") == [Line(1, b"a"), Line(2, b""), Line(3, b"b\xff")]
    assert Line(1, b"b\xff").text == "b\udcff"
    assert split_lines(b"", "file") == []
    assert oddity("plain words") == ""
