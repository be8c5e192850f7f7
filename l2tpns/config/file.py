"""The configuration file: a list of commands of the console, read whole and checked whole before anything is used.

`set VARIABLE VALUE`, `load plugin "NAME"`, `ip access-list` and `lac` with the lines below them; lines that begin with
`#` or `!` are comments. A command or variable of l2tpns 2.4.1 that is not supported is ignored with a warning, so that
an operator's startup-config loads; any other word is an error. settings.py declares the variables, access_list.py the
rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from l2tpns.config.access_list import AccessList, parse_head, parse_rule
from l2tpns.config.lac_profile import ADDRESS, HOST_NAME, LacProfile
from l2tpns.config.settings import SETTINGS, Config, find_setting
from l2tpns.config.value_types import Setting
from l2tpns.errors import ConfigError, refused
from l2tpns.runtime.text import printable, quote, unknown_word
from l2tpns.runtime.text_file import is_utf_8, oddity, read_lines

_MAX_ERRORS = 20  # reported of one file

_IPV6 = "IPv6 for subscribers comes with a later release"
_CLUSTER = "clustering comes with a later release, in another form"
_ROUTING = "a routing daemon announces the routes, from the kernel's table"
_LAC = "forwarding of sessions to other servers comes with a later release"
_PPPOE = "this server has no PPPoE: the LAC terminates it"
_NEEDLESS = "not needed"

# Variables of 2.4.1 that are ignored, each with the reason for the warning.
IGNORED: Mapping[str, str] = {
    "bind_address_remotelns": _LAC,
    "bind_portremotelns": _LAC,
    "cluster_address": _CLUSTER,
    "cluster_hb_interval": _CLUSTER,
    "cluster_hb_timeout": _CLUSTER,
    "cluster_interface": _CLUSTER,
    "cluster_master_min_adv": _CLUSTER,
    "cluster_mcast_ttl": _CLUSTER,
    "cluster_port": _CLUSTER,
    "default_ipv6_domain_list": _IPV6,
    "dhcp6_preferred_lifetime": _IPV6,
    "dhcp6_server_duid": _IPV6,
    "dhcp6_valid_lifetime": _IPV6,
    "disable_lac_func": _LAC,
    "dns6_lifetime": _IPV6,
    "ipv6_prefix": _IPV6,
    "lock_pages": "use the service manager to lock memory",
    "multi_read_count": _NEEDLESS,
    "nexthop6_address": _ROUTING,
    "nexthop_address": _ROUTING,
    "pppoe_ac_name": _PPPOE,
    "pppoe_if_to_bind": _PPPOE,
    "pppoe_only_equal_svc_name": _PPPOE,
    "pppoe_service_name": _PPPOE,
    "primary_ipv6_dns": _IPV6,
    "random_device": "random numbers always come from the kernel",
    "scheduler_fifo": "use the service manager to set the scheduling class",
    "secondary_ipv6_dns": _IPV6,
    "send_garp": _CLUSTER,
}

# Commands of 2.4.1 that are ignored: the command, the first words of the lines of its block, and the reason.
_IGNORED_COMMANDS: tuple[tuple[tuple[str, ...], tuple[str, ...], str], ...] = (
    (("router", "bgp"), ("neighbour", "neighbor", "no", "exit"), _ROUTING),
    (("setforward",), (), _LAC),
)
_COMMANDS = ("set", "load", "ip", "lac", "no", "router", "setforward")
_LAC_NAME = re.compile(r"[A-Za-z0-9._-]{1,32}", re.ASCII)
_PLUGIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The contents of a file: variables, plugins in order, their variables (which they check), and blocks by name."""

    path: str
    values: Mapping[str, Any]
    plugins: tuple[str, ...]
    plugin_settings: Mapping[str, str]
    filters: Mapping[str, AccessList]
    lacs: Mapping[str, LacProfile]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Files:
    """The files that belong to a configuration. They need not exist."""

    config: Path
    pool: Path
    users: Path
    secrets: Path

    def all(self) -> tuple[Path, ...]:
        """Return the directory of the files and each of them."""
        return self.config.parent, self.config, self.pool, self.users, self.secrets


def parse_file(path: str | Path) -> Parsed:
    """Read a file. Raises ConfigError with every wrong line, by file, line and variable."""
    try:
        lines = read_lines(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except OSError as error:
        raise refused(error.errno, f"{path}: {error.strerror}") from None
    # A secret may have octets that are not UTF-8: they are kept.
    return _parse((line.text for line in lines), str(path))


def parse_text(text: str, path: str = "configuration") -> Parsed:
    """Read the text of a file, as parse_file does."""
    # Only a newline ends a line: str.splitlines would also split at characters that a secret may have.
    return _parse((line.removesuffix("\r") for line in text.split("\n")), path)


def _parse(lines: Iterable[str], path: str) -> Parsed:
    reader = _Reader()
    errors: list[str] = []
    for number, line in enumerate(lines, 1):
        odd = oddity(line)
        try:
            reader.line(line)
        except ConfigError as error:
            errors.append(f"{path}:{number}: {error}" + (f"; the line {odd}" if odd else ""))
        else:
            reader.notes += [f"the line {odd}"] if odd else []
        for warning in reader.notes:
            reader.warnings.append(f"{path}:{number}: {warning}")
        reader.notes.clear()
    if errors:
        more = [f"{path}: and {len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
        raise ConfigError("\n".join(errors[:_MAX_ERRORS] + more))
    return Parsed(
        path,
        reader.values,
        tuple(reader.plugins),
        reader.plugin_settings,
        reader.filters,
        reader.lacs,
        tuple(reader.warnings),
    )


def make_config(parsed: Parsed, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of a file, with `overrides` from the command line. Raises ConfigError.

    A variable that the file does not name has its default, also at a reload.
    """
    blocks = {
        "plugins": parsed.plugins,
        "plugin_settings": parsed.plugin_settings,
        "filters": parsed.filters,
        "lacs": parsed.lacs,
    }
    config = Config(**{**parsed.values, **blocks, **(overrides or {})})
    try:
        config.check()
    except ConfigError as error:
        raise ConfigError(f"{parsed.path}: {error}") from None
    return config


def running_config(config: Config) -> str:
    """Return a configuration as a file, for `show running-config` and `write memory`."""
    lines = ["# Current configuration:"]
    lines += [SETTINGS[f.name].line(getattr(config, f.name)) for f in fields(config) if f.name in SETTINGS]
    lines += ["# Plugins", *(f"load plugin {quote(name)}" for name in config.plugins)]
    settings = config.plugin_settings.items()  # those of a removed plugin would be refused
    lines += [f"set {name} {quote(text)}" for name, text in settings if owner(name, config.plugins)]
    if config.filters:
        lines += ["# Packet filters", *(line for filter in config.filters.values() for line in filter.lines())]
    if config.lacs:
        lines += ["# Profiles of LACs", *(line for profile in config.lacs.values() for line in profile.lines(SETTINGS))]
    return "\n".join([*lines, "# end"]) + "\n"


def owner(variable: str, plugins: Iterable[str]) -> str:
    """Return the plugin whose name and an underscore this variable begins with, or an empty string."""
    return max((plugin for plugin in plugins if variable.startswith(f"{plugin}_")), key=len, default="")


def default_config(directory: str | Path) -> Path:
    """Return the configuration file of a directory, by its name here, else by that of 2.4.1."""
    return _first(Path(directory), "l2tpns.cfg", "startup-config")


def find_files(config_path: str | Path) -> Files:
    """Return the files beside a configuration, by their names here, else by those of 2.4.1."""
    path = Path(config_path)
    return Files(
        config=path,
        pool=_first(path.parent, "l2tpns.ip_pool", "ip_pool"),
        users=_first(path.parent, "l2tpns.users", "users"),
        secrets=path.parent / "l2tpns.secrets",
    )


def split_words(line: str) -> list[str]:
    """Return the words of a line. One in quotation marks may have spaces, and `\\"` and `\\\\`. Raises ConfigError."""
    words: list[str] = []
    position = 0
    while match := _WORD.match(line, position):
        position = match.end()
        if match["double"] is not None:
            words.append(re.sub(r"\\([\\\"])", r"\1", match["double"]))
        elif match["single"] is not None:
            words.append(match["single"])
        else:
            words.append(match["plain"])
    if line[position:].strip(" \t"):
        raise ConfigError("a quotation mark has no partner, or is followed by more than a space")
    return words


_WORD = re.compile(
    r"""[ \t]*(?: "(?P<double>(?:[^"\\]|\\.)*)"    # a backslash before anything but \ and " means itself
                | '(?P<single>[^']*)'
                | (?P<plain>[^"' \t][^ \t]*)
              )(?=[ \t]|$)""",
    re.VERBOSE | re.DOTALL,
)


class _Reader:
    """What was read of a file so far."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.plugins: list[str] = []
        self.plugin_settings: dict[str, str] = {}
        self.filters: dict[str, AccessList] = {}
        self.lacs: dict[str, LacProfile] = {}
        self.warnings: list[str] = []
        self.notes: list[str] = []  # warnings of the current line
        self._block: tuple[str, ...] = ()  # first words of the lines of the current block, if it is ignored
        self._filter: AccessList | None = None  # the access list of the current block
        self._lac = ""  # the profile of the current block

    def line(self, line: str) -> None:
        if not line.strip() or line.lstrip()[0] in "#!":
            return
        words = split_words(line)
        if words[0] in self._block:
            return
        self._block = ()
        if words[0] in ("permit", "deny"):
            self._rule(words)
            return
        if words[0] == "no" and words[1:2] in (["permit"], ["deny"]):
            self._no_rule(words[1:])
            return
        if self._lac and words[0] in (ADDRESS, HOST_NAME, "set"):
            self._lac_line(words)
            return
        inside, self._filter, self._lac = self._filter is not None or bool(self._lac), None, ""
        if words[0] == "set":
            self._set(words[1:])
        elif words[0] == "load":
            self._load(words[1:])
        elif words[:2] == ["ip", "access-list"]:
            self._access_list(words[2:])
        elif words[:3] == ["no", "ip", "access-list"]:
            self._no_access_list(words[3:])
        elif words[0] == "lac":
            self._begin_lac(words[1:])
        elif words != ["exit"] or not inside:
            self._ignore(words)

    def _set(self, words: list[str]) -> None:
        if len(words) != 2:
            name = printable(words[0]) if words else ""
            hint = f"; quote a value of {name} that has spaces" if len(words) > 2 else ""
            raise ConfigError(f"Usage: set <variable> <value>{hint}")
        name, value = words
        if name in IGNORED:
            self.notes.append(f"{name} is ignored: {IGNORED[name]}")
            return
        if name not in SETTINGS and owner(name, self.plugins):
            self.plugin_settings[name] = value  # the plugin checks the value
            if not is_utf_8(value) and not name.endswith(("password", "secret")):
                self.notes.append(f"{name} is not UTF-8: the plugin gets octets")
            return
        if name not in SETTINGS:
            raise ConfigError(unknown_word("variable", name, (*SETTINGS, *IGNORED)))
        self.values[name] = _value_of(find_setting(name), value)

    def _begin_lac(self, words: list[str]) -> None:
        """Begin the profile of some LACs."""
        # If the head is refused, its lines are not refused one by one.
        self._block = (ADDRESS, HOST_NAME, "set", "exit")
        if len(words) != 1 or not _LAC_NAME.fullmatch(words[0]):
            raise ConfigError("Usage: lac NAME, with a name of up to 32 of a-z, A-Z, 0-9, `.`, `_` and `-`")
        if words[0] in self.lacs:
            raise ConfigError(f"lac {words[0]} is there already")
        self._block, self._lac = (), words[0]
        self.lacs[words[0]] = LacProfile(words[0])

    def _lac_line(self, words: list[str]) -> None:
        """Read a line of the profile of some LACs."""
        profile = self.lacs[self._lac]
        if words[0] != "set":
            if len(words) != 2:
                raise ConfigError(f"Usage: {words[0]} LIST, with commas and no spaces")
            try:
                self.lacs[self._lac] = profile.with_words(*words)
            except ValueError:
                what = "networks such as 192.0.2.0/24" if words[0] == ADDRESS else "host names"
                raise ConfigError(f"{words[0]}: {printable(words[1])} will not do: it must be {what}") from None
            return
        if len(words) != 3:
            raise ConfigError("Usage: set <variable> <value>")
        setting = find_setting(words[1])
        if not setting.lac:
            raise ConfigError(f"{words[1]} is the same for all LACs: set it outside of `lac {self._lac}`")
        self.lacs[self._lac] = replace(profile, values={**profile.values, words[1]: _value_of(setting, words[2])})

    def _load(self, words: list[str]) -> None:
        if len(words) != 2 or words[0] != "plugin":
            raise ConfigError('Usage: load plugin "NAME"')
        name = words[1]
        if not _PLUGIN_NAME.fullmatch(name):
            raise ConfigError(
                f'load plugin: "{printable(name)}" is not the name of a plugin: give it without path and ending'
            )
        if name in self.plugins:
            self.notes.append(f"plugin {name} is loaded already")
        else:
            self.plugins.append(name)

    def _access_list(self, words: list[str]) -> None:
        """Begin a block of rules. A name that is known already is continued."""
        self._block = ("permit", "deny", "no", "exit")  # if the head is refused, its rules are not refused one by one
        name, extended = parse_head(words)
        known = self.filters.setdefault(name, AccessList(name, extended))
        if known.extended != extended:
            raise ConfigError(f"ip access-list: {name} is an access-list of the other kind already")
        self._block, self._filter = (), known

    def _no_access_list(self, words: list[str]) -> None:
        name, _ = parse_head(words)
        if self.filters.pop(name, None) is None:
            self.notes.append(f"no ip access-list: there is no {name} so far")

    def _rule(self, words: list[str]) -> None:
        inside = self._inside(words[0])
        rule = parse_rule(words, inside.extended)
        self._filter = self.filters[inside.name] = inside.plus(rule)

    def _no_rule(self, words: list[str]) -> None:
        inside = self._inside(f"no {words[0]}")
        rule = parse_rule(words, inside.extended)
        fewer = inside.minus(rule)
        if fewer == inside:
            self.notes.append(f"no {words[0]}: {inside.name} has no such rule so far")
        self._filter = self.filters[inside.name] = fewer

    def _inside(self, word: str) -> AccessList:
        if self._filter is None:
            raise ConfigError(f"`{word}` belongs below a line `ip access-list standard|extended NAME`")
        return self._filter

    def _ignore(self, words: list[str]) -> None:
        for command, block, why in _IGNORED_COMMANDS:
            if tuple(words[: len(command)]) == command:
                self.notes.append(f"{' '.join(command)} is ignored: {why}")
                self._block = block
                return
        raise ConfigError(
            unknown_word("command", words[0], _COMMANDS) + "; a line is `set`, `load plugin`, `ip access-list` or `lac`"
        )


def _value_of(setting: Setting, text: str) -> Any:
    """Return the value of the operator's text. Raises ConfigError."""
    try:
        return setting.parse(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _first(directory: Path, ours: str, theirs: str) -> Path:
    """Return the file by its name here, unless only the other exists."""
    if not (directory / ours).exists() and (directory / theirs).exists():
        return directory / theirs
    return directory / ours
