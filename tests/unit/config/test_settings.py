"""The configuration: what a file may say, what is refused and in which words, and that what is written reads back."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2tpns.config.file import (
    IGNORED,
    default_config,
    find_files,
    make_config,
    parse_file,
    parse_text,
    running_config,
)
from l2tpns.config.settings import SETTINGS, Config, RadiusServer
from l2tpns.config.value_types import (
    Address,
    Addresses,
    Bool,
    Choice,
    Effect,
    Integer,
    Kind,
    Networks,
    SecretsOfClients,
    Text,
    User,
    Words,
)
from l2tpns.daemon import Options
from l2tpns.errors import ConfigError

SHIPPED = Path(__file__).parents[3] / "etc/l2tpns"

# reference: the variables of l2tpns 1.1, and those of 2.x that are built here
V11 = """debug log_file l2tp_secret primary_dns secondary_dns save_state snoop_host snoop_port primary_radius
    secondary_radius radius_accounting radius_secret bind_address cluster_master throttle_speed dump_speed setuid
    accounting_dir""".split()
V2 = """hostname pid_file l2tp_mtu ppp_restart_time ppp_max_configure ppp_max_failure ppp_keepalive echo_timeout
    idle_echo_timeout primary_radius_port secondary_radius_port radius_interim radius_authtypes radius_bind_min
    radius_bind_max allow_duplicate_users guest_account peer_address iftun_address tundevicename icmp_rate packet_limit
    bind_multi_address multi_hostname disable_sending_hello auth_tunnel_change_addr_src disable_no_spoof
    cli_bind_address kill_timedout_sessions account_all_origin""".split()


def read(text: str) -> Config:
    return make_config(parse_text(text, "l2tpns.cfg"))


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text)
    return str(caught.value)


# Strategies that make any value a kind of variable can have


def _values(kind: Kind[Any]) -> st.SearchStrategy[Any]:
    words = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","), min_size=1, max_size=8)
    match kind:
        case Bool():
            return st.booleans()
        case Integer():
            return st.integers(kind.minimum, kind.maximum)
        case Address():
            return st.none() | st.ip_addresses(v=4).filter(lambda a: int(a) != 0)
        case Addresses():
            return st.lists(st.ip_addresses(v=4), max_size=4).map(tuple)
        case Networks():
            networks = st.tuples(st.ip_addresses(v=4), st.integers(0, 32))
            return st.lists(networks.map(lambda it: IPv4Network(it, strict=False)), max_size=4).map(tuple)
        case SecretsOfClients():
            secrets = st.text(
                st.characters(exclude_characters=",", exclude_categories=("C", "Z")), min_size=1, max_size=9
            )
            networks = st.tuples(st.ip_addresses(v=4), st.integers(0, 32))
            clients = st.tuples(networks.map(lambda it: IPv4Network(it, strict=False)), secrets)
            return st.lists(clients, max_size=4).map(tuple)
        case User():
            return st.integers(0, 2**32 - 2).map(str) | st.from_regex(r"[a-z_][a-z0-9_-]{0,31}", fullmatch=True)
        case Words(choices=()):
            return st.lists(words, unique=True, max_size=4).map(tuple)
        case Words():
            return st.lists(st.sampled_from(kind.choices), unique=True, min_size=kind.minimum).map(tuple)
        case Choice():
            return st.sampled_from(kind.choices)
        case Text(pattern=""):
            legal = st.characters(exclude_categories=["Cc", "Cs"]) | st.integers(0xDC80, 0xDCFF).map(chr)
            return st.text(legal, max_size=kind.maximum).filter(lambda t: _fits(kind, t))
        case Text():
            return st.just("") | st.from_regex(re.compile(kind.pattern, re.ASCII), fullmatch=True).filter(
                lambda t: _fits(kind, t)
            )
    raise AssertionError(f"no strategy for {kind!r}")


def _fits(kind: Text, text: str) -> bool:
    try:
        kind.parse(text)
    except ValueError:
        return False
    # What is read from a file is UTF-8 wherever it can be: octets that together make a character come back as it.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") == text


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=25)
@given(data=st.data())
def test_each_variable_reads_back_from_the_line_that_is_written_for_it(name: str, data: st.DataObject) -> None:
    setting = SETTINGS[name]
    value = data.draw(_values(setting.kind))
    octets = setting.line(value).encode("utf-8", "surrogateescape")
    assert parse_text(octets.decode("utf-8", "surrogateescape")).values == {name: value}


def test_a_configuration_in_which_everything_is_set_reads_back_to_the_same() -> None:
    config = Config(plugins=("garden", "autothrottle"))
    changed = {
        Bool: lambda value: not value,
        Integer: lambda value: value + 1,
        Address: lambda value: IPv4Address("192.0.2.9"),
        Addresses: lambda value: (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")),
        Networks: lambda value: (IPv4Network("192.0.2.128/25"), IPv4Network("10.0.0.0/8")),
        SecretsOfClients: lambda value: ((IPv4Network("192.0.2.9"), 'a "b" \\ c'), (IPv4Network("10.0.0.0/8"), "x")),
        Words: lambda value: ("chap", "pap"),
        Choice: lambda value: "yes",
    }
    special = {"log_file": "syslog:local0", "radius_secret": 'a "b" \\ c#d', "l2tp_secret": "!'", "debug": 5}
    special["snoop_format"] = "framed"
    special["fast_path"] = "on"
    special["throttle_method"] = "htb"
    special["username_case"] = "sensitive"
    special["nsctl_secret"] = 'a "b" \\ of 16 octets'
    for setting in SETTINGS.values():
        value = changed.get(type(setting.kind), lambda value: "/x" if value.startswith("/") else "name")(
            setting.default
        )
        if isinstance(setting.kind, Text) and "/" in setting.kind.pattern and setting.name != "tundevicename":
            value = "/var/x"
        setattr(config, setting.name, special.get(setting.name, value))
    config.check()
    assert len(config.differences(Config())) == len(SETTINGS) + 1
    assert read(running_config(config)) == config


def test_the_running_configuration_has_the_layout_that_operators_know() -> None:
    lines = running_config(Config(plugins=("garden",), l2tp_secret="s", save_state=True)).splitlines()
    assert lines[0] == "# Current configuration:"
    assert len([line for line in lines if line.startswith("set ")]) == len(SETTINGS)
    assert lines[-3:] == ["# Plugins", 'load plugin "garden"', "# end"]
    assert 'set l2tp_secret "s"' in lines
    assert "set save_state yes" in lines
    assert "set primary_dns 0.0.0.0" in lines


@pytest.mark.parametrize("name", [*V11, *V2])
def test_every_variable_of_the_older_servers_that_is_promised_is_known(name: str) -> None:
    assert name in SETTINGS


@pytest.mark.parametrize("name", IGNORED)
def test_a_variable_of_2_4_1_that_we_do_not_have_is_named_in_a_warning(name: str) -> None:
    parsed = parse_text(f'\nset {name} "x"', "startup-config")
    assert parsed.values == {}
    (warning,) = parsed.warnings
    assert warning.startswith(f"startup-config:2: {name} is ignored: ")
    assert name not in SETTINGS


STARTUP_CONFIG = """\
! a configuration of 2.4.1
set debug 2
set log_file "/var/log/l2tpns"
set pid_file "/run/l2tpns.pid"
set l2tp_secret "secret"
set random_device "/dev/urandom"
set primary_radius 10.0.0.1
set primary_radius_port 1645
set radius_authtypes "chap,pap"
set bind_multi_address "10.1.1.1, 10.1.1.2"
set cluster_hb_timeout 150
setforward forwardtolns 10.0.0.3 1701 "other secret"
router bgp 64512
 neighbour 10.0.0.4 remote-as 64513
 neighbour 10.0.0.4 timers 30 90
ip access-list extended user-in
 permit ip any any
 deny tcp any host 10.0.0.5 eq 25
load plugin "autothrottle"
load plugin "garden"
set cli_bind_address 127.0.0.1
"""


def test_an_operators_startup_config_loads_and_what_is_passed_over_is_named_once_each() -> None:
    parsed = parse_text(STARTUP_CONFIG, "startup-config")
    assert [warning.split(" is ignored")[0] for warning in parsed.warnings] == [
        "startup-config:6: random_device",
        "startup-config:11: cluster_hb_timeout",
        "startup-config:12: setforward",
        "startup-config:13: router bgp",
    ]
    assert not [warning for warning in parsed.warnings if "other secret" in warning]
    config = make_config(parsed)
    assert config.plugins == ("autothrottle", "garden")
    assert [rule.text(True) for rule in config.filters["user-in"].rules] == [
        "permit ip any any",
        "deny tcp any host 10.0.0.5 eq 25",
    ]
    assert config.radius_authtypes == ("chap", "pap")
    assert config.bind_multi_address == (IPv4Address("10.1.1.1"), IPv4Address("10.1.1.2"))
    assert config.radius_servers == (RadiusServer(IPv4Address("10.0.0.1"), 1645, 1646),)


FILTERS = """\
ip access-list standard quiet
ip access-list extended web
 permit tcp any any eq 80
 deny udp any range 1 5 any
 exit
ip access-list standard home
 permit 10.0.0.0 0.0.255.255
set debug 1
"""


@pytest.mark.shows("ip access-list, permit, deny")
def test_filters_are_read_and_written_back_with_their_rules_in_order() -> None:
    config = read(FILTERS)
    assert [line for filter in config.filters.values() for line in filter.lines()] == [
        "ip access-list standard quiet",
        "ip access-list extended web",
        " permit tcp any any eq 80",
        " deny udp any range 1 5 any",
        "ip access-list standard home",
        " permit 10.0.0.0 0.0.255.255",
    ]
    assert config.debug == 1
    assert read(running_config(config)) == config


def test_a_filter_may_go_on_later_and_lose_rules_again() -> None:
    more = "ip access-list extended web\npermit icmp any any\nno deny udp any range 1 5 any\n"
    filters = read(FILTERS + more + "no ip access-list standard home").filters
    assert [rule.text(True) for rule in filters["web"].rules] == ["permit tcp any any eq 80", "permit icmp any any"]
    assert "home" not in filters


def test_taking_away_a_filter_or_rule_that_is_not_there_is_told() -> None:
    parsed = parse_text(
        "no ip access-list standard home\nip access-list standard home\nno permit any\npermit any", "l2tpns.cfg"
    )
    assert parsed.warnings == (
        "l2tpns.cfg:1: no ip access-list: there is no home so far",
        "l2tpns.cfg:3: no permit: home has no such rule so far",
    )
    assert len(parsed.filters["home"].rules) == 1


def test_a_wrong_rule_is_an_error_by_file_and_line() -> None:
    text = refused(FILTERS + "ip access-list extended web\n permit ip any any\n permit tcp any any eq smtp\n deny foo")
    assert text.splitlines() == [
        'l2tpns.cfg:11: after `permit tcp any any eq`: "smtp" will not do: it must be a port number from 0 to 65535',
        'l2tpns.cfg:12: after `deny`: "foo" will not do: it must be ip, tcp, udp or icmp',
    ]


@pytest.mark.parametrize("head", ["ip access-list web", "ip access-list extended", "ip access-list standard web"])
def test_the_rules_below_a_refused_head_are_not_refused_one_by_one(head: str) -> None:
    text = refused(f"{FILTERS}{head}\n permit ip any any\n deny tcp any any\nexit\nset debug 9")
    assert [line.split(": ")[0] for line in text.splitlines()] == ["l2tpns.cfg:9", "l2tpns.cfg:13"]


def test_lines_of_a_block_are_errors_outside_of_it() -> None:
    assert "below a line `ip access-list" in refused("ip access-list standard a\nset debug 1\npermit any")
    assert "below a line `ip access-list" in refused("ip access-list standard a\nexit\nno permit any")
    assert 'Unknown command "exit"' in refused("exit")
    assert "l2tpns.cfg:1:" in refused("permit ip any any")
    assert "l2tpns.cfg:3:" in refused("router bgp 1\nset debug 1\nneighbour 10.0.0.1 remote-as 2")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("set debgu 3", ['Unknown variable "debgu"', 'did you mean "debug"?']),
        ("set radius_dea_port 3799", ['Unknown variable "radius_dea_port"', "radius_dae_port"]),
        ("sett debug 3", ['Unknown command "sett"', 'did you mean "set"?']),
        ("set debug 6", ["debug", '"6"', "from 0 to 5"]),
        ("set debug yes", ["debug", "a whole number from 0 to 5"]),
        ("set debug 1e9", ["debug"]),
        ("set debug ٣", ["debug"]),
        ("set debug 99999999999999999999999999", ["debug"]),
        ("set save_state maybe", ["save_state", '"maybe"', "yes, true or 1; or no, false or 0"]),
        ("set primary_dns 10.0.0.256", ["primary_dns", '"10.0.0.256"', "an IPv4 address such as"]),
        ("set primary_dns 10.0.0.1/24", ["primary_dns"]),
        ("set primary_dns ::1", ["primary_dns"]),
        ("set radius_authtypes pap,eap", ["radius_authtypes", "pap, chap"]),
        ("set radius_authtypes pap,pap", ["radius_authtypes"]),
        ('set radius_authtypes ""', ["radius_authtypes"]),
        ("set bind_multi_address 10.0.0.1,,10.0.0.2", ["bind_multi_address", "separated by commas"]),
        ("set log_file syslog:locale3", ["log_file", "syslog:FACILITY"]),
        ("set log_file l2tpns.log", ["log_file", "a path from the root"]),
        ("set pid_file run/x.pid", ["pid_file", "a path from the root"]),
        ("set tundevicename abcdefghijklmnop", ["tundevicename", "at most 15"]),
        ("set tundevicename a/b", ["tundevicename"]),
        ("set hostname my_host!", ["hostname"]),
        ("set radius_require_message_authenticator maybe", ["auto, yes or no"]),
        ("set radius_interim 86401", ["radius_interim", "from 0 to 86400 (seconds)"]),
        ("set debug", ["Usage: set <variable> <value>"]),
        ("set", ["Usage: set <variable> <value>"]),
        ("set radius_secret two words", ["Usage: set <variable> <value>", "quote"]),
        ('set radius_secret "open', ["quotation mark"]),
        ('set radius_secret "a"b', ["quotation mark"]),
        ("load garden", ['Usage: load plugin "NAME"']),
        ('load plugin "../../tmp/x"', ["not the name of a plugin"]),
        ('load plugin "garden.so"', ["not the name of a plugin", "without path and ending"]),
    ],
)
def test_what_is_wrong_is_told_with_file_line_and_what_would_be_right(line: str, words: list[str]) -> None:
    text = refused(f"# comment\nset debug 3\n{line}\n")
    assert text.startswith("l2tpns.cfg:3: ")
    for word in words:
        assert word in text


@pytest.mark.parametrize("secret", ["x" * 65, "tab\tin it"])
def test_a_secret_that_is_refused_does_not_stand_in_the_message(secret: str) -> None:
    text = refused(f'set radius_secret "{secret}"')
    assert "radius_secret" in text
    assert secret not in text


def test_all_wrong_lines_are_told_at_once() -> None:
    text = refused("set debug 9\nset debgu 1\nset save_state yes\nfoo")
    assert [line.split(": ")[0] for line in text.splitlines()] == ["l2tpns.cfg:1", "l2tpns.cfg:2", "l2tpns.cfg:4"]
    assert "and 80 more" in refused("bad\n" * 100)


@given(st.text() | st.text(st.sampled_from("set debug\"'\\ \n#!load plugin0123")))
def test_any_text_is_a_configuration_or_an_error_of_ours(text: str) -> None:
    try:
        config = make_config(parse_text(text))
    except ConfigError as error:
        assert "configuration:" in str(error)
    else:
        assert make_config(parse_text(running_config(config))) == config


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("plain", "plain"),
        ('"two words"', "two words"),
        ("'two words'", "two words"),
        ('""', ""),
        (r'"say \"hi\""', 'say "hi"'),
        (r'"back\\slash"', r"back\slash"),
        (r'"C:\dir"', r"C:\dir"),  # older files had no escapes
        ('"#no comment"', "#no comment"),
        ("it's#1", "it's#1"),
    ],
)
def test_how_values_are_quoted(written: str, meant: str) -> None:
    assert read(f"  set\tl2tp_secret   {written}  \r\n").l2tp_secret == meant


def test_a_secret_may_be_octets_that_are_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "l2tpns.cfg"
    path.write_bytes(b'set radius_secret "p\xe4ss"\n')
    config = make_config(parse_file(path))
    assert config.radius_secret_octets == b"p\xe4ss"
    path.write_bytes(running_config(config).encode("utf-8", "surrogateescape"))
    assert make_config(parse_file(path)) == config


@pytest.mark.parametrize(("word", "value"), [("YES", True), ("True", True), ("1", True), ("No", False), ("0", False)])
def test_the_words_of_a_bool(word: str, value: bool) -> None:
    assert read(f"set save_state {word}").save_state is value


@pytest.mark.parametrize(("given", "kept"), [(100, 576), (9000, 2600), (1500, 1500)])
def test_an_mtu_outside_the_range_is_brought_into_it_as_ever(given: int, kept: int) -> None:
    assert read(f"set l2tp_mtu {given}").l2tp_mtu == kept


@pytest.mark.parametrize(("mtu", "mru"), [(1500, 1462), (1530, 1492), (1538, 1500), (2600, 1500), (576, 538)])
def test_the_mru_leaves_room_for_the_headers_and_suits_pppoe(mtu: int, mru: int) -> None:
    assert Config(l2tp_mtu=mtu).mru == mru


def test_addresses_fall_back_on_one_another() -> None:
    one, two, three = (IPv4Address(f"192.0.2.{n}") for n in (1, 2, 3))
    nothing = Config()
    assert nothing.tun_address == nothing.ppp_local_address == IPv4Address("1.1.1.1")
    assert nothing.listen_addresses == (IPv4Address("0.0.0.0"),)
    bound = Config(bind_address=one)
    assert bound.tun_address == bound.ppp_local_address == one
    assert bound.listen_addresses == (IPv4Address(0),)
    each = Config(bind_address=one, iftun_address=two, peer_address=three)
    assert (each.tun_address, each.ppp_local_address) == (two, three)
    several = Config(bind_address=one, iftun_address=one, bind_multi_address=(two, three), multi_hostname=("a", "b"))
    assert several.main_address == several.tun_address == several.ppp_local_address == two
    assert several.listen_addresses == (two, three)
    assert several.name_on(three) == "b"
    assert several.name_on(one) == several.hostname


def test_the_host_name_is_the_machines_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    assert Config().hostname == "box"
    assert Config(hostname="lns1").hostname == "lns1"
    config = Config(hostname="lns1")
    config.assign("hostname", "")
    assert config.hostname == "box"


def test_variables_that_do_not_go_together_are_an_error_that_names_both() -> None:
    text = refused("set radius_bind_min 3000\nset radius_bind_max 2000")
    assert text.startswith("l2tpns.cfg: ") and "radius_bind_min" in text and "radius_bind_max" in text
    assert "multi_hostname" in refused("set multi_hostname a,b\nset bind_multi_address 10.0.0.1")


def test_a_variable_that_moves_nothing_yet_is_told_when_it_is_set() -> None:
    assert Config().without_effect() == ()
    told = dict(read("set cluster_master 192.0.2.1\nset account_all_origin yes\nset debug 3").without_effect())
    assert set(told) == {"cluster_master", "account_all_origin"}
    assert all(told.values())


@pytest.mark.parametrize(
    ("half", "whole"),
    [
        ("set primary_radius 192.0.2.1", "set radius_secret s"),
        ("set radius_accounting yes", "set primary_radius 192.0.2.1\nset radius_secret s"),
        ("set radius_bind_min 3000", "set radius_bind_max 3100"),
        ("set l2tp_challenge yes", "set l2tp_secret s"),
        ("set snoop_host 192.0.2.1", "set snoop_port 9000"),
        ("set snoop_port 9000", "set snoop_host 192.0.2.1"),
    ],
)
def test_a_variable_that_moves_nothing_without_another_is_told(half: str, whole: str) -> None:
    assert [name for name, _ in read(half).without_effect()] == [half.split()[1]]
    assert read(f"{half}\n{whole}").without_effect() == ()


def test_the_words_of_the_command_line_are_checked_as_those_of_the_file_are() -> None:
    good = Options(Path("x"), hostname="lns1", address="192.0.2.1")
    assert good.overrides() == {"hostname": "lns1", "bind_address": IPv4Address("192.0.2.1")}
    with pytest.raises(ConfigError, match=r"-h: hostname: .*letters"):
        Options(Path("x"), hostname="bad name!").overrides()
    with pytest.raises(ConfigError, match=r"-a: bind_address: .*IPv4 address"):
        Options(Path("x"), address="::1").overrides()


def test_set_changes_one_variable_and_a_bad_value_none() -> None:
    config = Config()
    assert config.assign("debug", "3").effect is Effect.LIVE
    assert config.debug == 3
    before = running_config(config)
    for name, value in [("debug", "9"), ("nonsense", "1"), ("multi_hostname", "a,b")]:
        with pytest.raises(ConfigError):
            config.assign(name, value)
    assert running_config(config) == before


def test_a_reload_changes_what_differs_and_a_variable_no_longer_named_gets_its_default() -> None:
    running = read("set debug 3\nset echo_timeout 20\nload plugin garden")
    held = running
    changed = running.take(read("set debug 3\nset idle_echo_timeout 60"))
    assert set(changed) == {"echo_timeout", "idle_echo_timeout", "plugins"}
    assert (held.echo_timeout, held.idle_echo_timeout, held.debug) == (10, 60, 3)


def test_the_command_line_goes_before_the_file() -> None:
    assert make_config(parse_text("set debug 1"), {"debug": 4}).debug == 4


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.cfg: No such file"):
        parse_file(tmp_path / "none.cfg")
    with pytest.raises(ConfigError, match="directory"):
        parse_file(tmp_path)


def test_the_other_files_are_found_beside_the_configuration_by_either_name(tmp_path: Path) -> None:
    found = find_files(tmp_path / "my.cfg")
    assert (found.pool.name, found.users.name, found.secrets.name) == (
        "l2tpns.ip_pool",
        "l2tpns.users",
        "l2tpns.secrets",
    )
    for name in ("ip_pool", "users", "startup-config"):
        (tmp_path / name).touch()
    found = find_files(tmp_path / "my.cfg")
    assert (found.pool.name, found.users.name) == ("ip_pool", "users")
    assert default_config(tmp_path).name == "startup-config"
    for name in ("l2tpns.ip_pool", "l2tpns.users", "l2tpns.cfg"):
        (tmp_path / name).touch()
    found = find_files(tmp_path / "my.cfg")
    assert (found.pool.name, found.users.name) == ("l2tpns.ip_pool", "l2tpns.users")
    assert default_config(tmp_path).name == "l2tpns.cfg"


def test_the_shipped_configuration_loads_without_a_warning_and_binds_the_console_to_loopback() -> None:
    parsed = parse_file(SHIPPED / "l2tpns.cfg")
    assert parsed.warnings == ()
    config = make_config(parsed)
    assert config.without_effect() == ()
    assert config.cli_bind_address == IPv4Address("127.0.0.1")


def test_the_shipped_configuration_is_also_good_with_every_commented_line_in_force() -> None:
    text = (SHIPPED / "l2tpns.cfg").read_text()
    in_force = re.sub(r"^#(set|load) ", r"\1 ", text, flags=re.MULTILINE)
    assert in_force != text
    assert parse_text(in_force).warnings == ()


@pytest.mark.parametrize("variable", SETTINGS)
def test_the_help_of_a_variable_is_a_phrase_that_ends_with_the_default(variable: str) -> None:
    chosen = SETTINGS[variable]
    assert chosen.help[0].isupper() and not chosen.help.endswith(".")
    assert chosen.help_with_default.count("(default: ") == 1
    assert chosen.help_with_default.endswith(")")


def test_a_default_that_the_help_does_not_explain_is_added_to_it() -> None:
    assert SETTINGS["nsctl_port"].help_with_default == "UDP port of nsctl (default: 1702)"
    assert SETTINGS["iftun_address"].help_with_default == SETTINGS["iftun_address"].help
