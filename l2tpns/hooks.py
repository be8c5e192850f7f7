"""Declarations of the plugin hooks and of their events (manual: Plugins; reference 7).

The loader's checks, the calls and docs/plugins.md are derived from HOOKS. Fields have the manual's names; `session` and
a few others are additions. `changeable` declares a field that a plugin may set. Setting any other field, or a value of
another type, raises an exception in the plugin that names the field.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, cast, dataclass_transform

from l2tpns.dataplane.session_path import Tap

PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP = 0, 1, 2
PLUGIN_API_VERSION = 1

_HELP, _TYPE = "help", "type"


E = TypeVar("E", bound="Event")


class Session(Protocol):
    """The session of an event. Plugins see it through plugins/session_api.py."""

    @property
    def id(self) -> int: ...


def given(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that a plugin may read."""
    return dataclasses.field(default=default, metadata={_HELP: help})


def changeable(help: str, kind: type, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that a plugin may set, to a value of this type."""
    return dataclasses.field(default=default, metadata={_HELP: help, _TYPE: kind})


class Event:
    """The argument of a hook's functions, which are called in order with the same event."""

    __slots__ = ()
    changeable: ClassVar[dict[str, type]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field. Raises AttributeError if it may not be changed, TypeError for a value of another type."""
        if hasattr(self, name):
            kind = self.changeable.get(name)
            if kind is None:
                may = ", ".join(self.changeable) or "nothing"
                raise AttributeError(f"{type(self).__name__}.{name} may not be changed, only: {may}")
            if kind is bool and value in (0, 1):
                value = bool(value)
            if not isinstance(value, kind):
                raise TypeError(f"{type(self).__name__}.{name} must be {kind.__name__}, not {type(value).__name__}")
        object.__setattr__(self, name, value)

    def state(self) -> tuple[Any, ...]:
        """Return the values of the changeable fields."""
        return tuple(getattr(self, name) for name in self.changeable)

    def restore(self, state: tuple[Any, ...]) -> None:
        """Restore the values that `state` returned."""
        for name, value in zip(self.changeable, state, strict=True):
            object.__setattr__(self, name, value)

    @property
    def secret(self) -> str:
        """Return a text that no log line may show, even if a plugin puts it into an exception."""
        return ""

    @property
    def over(self) -> bool:
        """Return whether the chain ends here, whatever the return code."""
        return False


@dataclass_transform(field_specifiers=(given, changeable))
def event(cls: type[E]) -> type[E]:
    """Make a class of events. It has slots, so that setting a misspelt field is an error."""
    made: Any = dataclass(slots=True)(cls)
    made.changeable = {f.name: f.metadata[_TYPE] for f in dataclasses.fields(made) if _TYPE in f.metadata}
    return cast("type[E]", made)


T = "id of the tunnel, assigned by the server"
S = "id of the session, assigned by the server"
SESSION = "the session: see below"
PROTOCOL = "0xC023 for PAP, 0xC223 for CHAP and MS-CHAP"


@event
class param_pre_auth(Event):
    """A subscriber has sent PAP or CHAP credentials, before the request to RADIUS."""

    t: int = given(T)
    s: int = given(S)
    username: str = changeable("the user name, used by RADIUS, accounting and `show session` as changed", str)
    password: str = changeable("the PAP password; empty with CHAP, where a change has no effect", str)
    protocol: int = given(PROTOCOL)
    continue_auth: bool = changeable("set to 0 (False) to refuse the login at once, without RADIUS", bool, default=True)
    session: Session = given(SESSION, default=None)

    @property
    def secret(self) -> str:
        return self.password

    @property
    def over(self) -> bool:
        return not self.continue_auth


@event
class param_post_auth(Event):
    """RADIUS or the secrets file has replied; the subscriber is not yet notified. Not called without a reply."""

    t: int = given(T)
    s: int = given(S)
    username: str = given("the user name")
    auth_allowed: bool = changeable("the verdict so far; set to 1 or 0 (True or False) to override it", bool)
    protocol: int = given(PROTOCOL)
    reason: str = given("of a refusal: the Reply-Message, else the reason known to the server", default="")
    avpairs: tuple[tuple[str, str], ...] = given("key and value of each Cisco-AVPair in the reply", default=())
    session: Session = given(SESSION, default=None)


@event
class param_radius_response(Event):
    """Called for each `key=value` of the Cisco-AVPairs, in order, after a positive verdict. It is called for a Reject
    too that a plugin has turned into a success: its attributes apply like those of an Accept."""

    t: int = given(T)
    s: int = given(S)
    key: str = given("the text before the `=`")
    value: str = given("the text after it")
    session: Session = given(SESSION, default=None)


@event
class param_new_session(Event):
    """The session is online. Called again after a restart of the server that restored the session."""

    t: int = given(T)
    s: int = given(S)
    resumed: bool = given("True if the session was restored after a restart", default=False)
    session: Session = given(SESSION, default=None)


@event
class param_kill_session(Event):
    """A session that requested a login is about to end. It still has its address and counters. Called once."""

    t: int = given(T)
    s: int = given(S)
    cause: str = given("the cause, as `cause` in the log", default="")
    session: Session = given(SESSION, default=None)


@event
class param_radius_reset(Event):
    """RADIUS has authorized an online session again: undo what the plugin did for its earlier reply. The
    radius_response events of the new reply follow."""

    t: int = given(T)
    s: int = given(S)
    session: Session = given(SESSION, default=None)


@event
class param_radius_change(Event):
    """RADIUS has changed an online session by a CoA-Request. The radius_response events of AVPairs that only plugins
    read precede this event."""

    t: int = given(T)
    s: int = given(S)
    by: str = given("who asked: `RADIUS` and the address")
    changed: tuple[str, ...] = given("names of what was changed, such as `rate_out`, `filter_ids`, `session_timeout`")
    session: Session = given(SESSION, default=None)


@event
class param_radius_account(Event):
    """An accounting record is about to be written."""

    t: int = given(T)
    s: int = given(S)
    kind: str = given("`start`, `interim` or `stop`")
    session: Session = given(SESSION, default=None)
    avpairs: list[str] = given("Cisco-AVPairs to send: append strings such as `intercept=yes`", default=None)
    attributes: list[tuple[str, str | int]] = given("more attributes: use `add`", default=None)
    check: Callable[[str, Any], None] = given("for `add`", default=None)

    def add(self, name: str, value: str | int) -> None:
        """Add an attribute by its name in the dictionary. It may be added repeatedly. Raises ValueError if the
        dictionary lacks it, if it cannot have this value, or if the server sets it itself."""
        self.check(name, value)
        self.attributes.append((name, value))

    def avpair(self, text: str) -> None:
        """Add a Cisco-AVPair. Raises ValueError if it is not text of 1 to 247 octets."""
        if not isinstance(text, str) or not 0 < len(text.encode("utf-8", "surrogateescape")) <= 247:
            raise ValueError(f"{text!r:.60} is not a Cisco-AVPair: use text of 1 to 247 octets")
        self.avpairs.append(text)


@event
class param_timer(Event):
    """Called every second. Seconds that pass during a longer function are skipped."""

    time_now: int = given("Unix time")


@event
class param_control(Event):
    """nsctl has sent a command that the server itself does not have."""

    argv: tuple[str, ...] = given("the words: command, then arguments")
    source_ip: str = given("source address of the request")
    source_port: int = given("source port of the request")
    buf: bytes = given("the raw packet", default=b"")
    l: int = given("its length", default=0)  # noqa: E741 - the manual's name
    type: int = given("type of request", default=0)
    id: int = given("id of the request", default=0)
    data: bytes = given("the octets after the header of the packet", default=b"")
    data_length: int = given("its length", default=0)
    response: str = changeable("the reply", str, default="")
    send_response: bool = changeable(
        "set to 1 (True) to handle a command with PLUGIN_RET_OK and an empty reply", bool, default=False
    )


class param_packet_rx:
    """A packet to the subscriber. Use sparingly: this slows every packet of every session down."""

    __slots__ = ("buf", "len", "s", "session", "t")

    def __init__(self, t: int, s: int, session: Session) -> None:
        self.t = t
        self.s = s
        self.session = session
        self.buf = b""
        self.len = 0


class param_packet_tx(param_packet_rx):
    """A packet from the subscriber. Use sparingly: this slows every packet of every session down."""

    __slots__ = ()


PACKET_FIELDS = {
    "t": ("int", T, False),
    "s": ("int", S, False),
    "buf": ("bytes", "the raw IP packet; set it to replace the packet", True),
    "len": ("int", "its length", False),
    "session": ("Session", SESSION, False),
}


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook. The functions `plugin_NAME` of all plugins are called in the order of loading."""

    name: str
    event: type[Any] | None  # None: see `when`
    stop: str
    error: str
    when: str = ""
    arguments: int = 1

    @property
    def function(self) -> str:
        """Return the name of the function in a plugin."""
        return f"plugin_{self.name}"

    @property
    def fields(self) -> dict[str, tuple[str, str, bool]]:
        """Return type, help and whether it may be changed, for each field of the event."""
        if self.event is None:
            return {}
        if issubclass(self.event, param_packet_rx):
            return PACKET_FIELDS
        return {
            f.name: (str(f.type), f.metadata[_HELP], _TYPE in f.metadata)
            for f in dataclasses.fields(self.event)
            if f.name != "check"
        }


_NO_MORE = "no further plugin is asked"
_FAILED = "as STOP"
_HOOKS = (
    Hook(
        "init",
        None,
        "as OK",
        "the plugin is not loaded",
        "The plugin is being loaded; its argument is the server. Optional. If it fails, its declarations are undone.",
    ),
    Hook("done", None, "as OK", "as OK", "The plugin is being removed, or the server stops.", arguments=0),
    Hook(
        "save",
        None,
        "-",
        "-",
        "The plugin is about to be replaced (`reload plugin`). Its result becomes `server.saved` of the new one.",
        arguments=0,
    ),
    Hook("pre_auth", param_pre_auth, _NO_MORE, f"{_NO_MORE}; the login goes on"),
    Hook("post_auth", param_post_auth, _NO_MORE, f"{_NO_MORE}; the verdict is as it was left"),
    Hook("radius_response", param_radius_response, "no further plugin sees this pair", _FAILED),
    Hook("new_session", param_new_session, _NO_MORE, _FAILED),
    Hook("kill_session", param_kill_session, _NO_MORE, _FAILED),
    Hook("radius_reset", param_radius_reset, _NO_MORE, _FAILED),
    Hook("radius_change", param_radius_change, _NO_MORE, _FAILED),
    Hook("radius_account", param_radius_account, _NO_MORE, "as STOP; what was added is sent"),
    Hook("timer", param_timer, "no further plugin is called in this second", _FAILED),
    Hook(
        "control",
        param_control,
        "the command is this plugin's and succeeded: nsctl prints the response",
        "the command is this plugin's and failed: nsctl prints the response as an error",
    ),
    Hook("packet_rx", param_packet_rx, "no further plugin sees the packet, which goes on", "the packet is dropped"),
    Hook("packet_tx", param_packet_tx, "no further plugin sees the packet, which goes on", "the packet is dropped"),
)
HOOKS: dict[str, Hook] = {hook.name: hook for hook in _HOOKS}
PACKET_HOOKS = ("packet_tx", "packet_rx")  # in the order of UP, DOWN
# Other names in a plugin with the prefix plugin_.
NAMES = {
    "plugin_api_version": "integer version of the interface that the plugin was written for; others are refused",
    "plugin_avpairs": "keys of the Cisco-AVPairs that it handles, without `#1`: keys that no plugin handles are "
    "logged. Without it, a plugin with `plugin_post_auth` or `plugin_radius_response` is assumed to handle all",
    "plugin_control_help": "lines that `nsctl help` shows: a list of strings, or a function that returns one",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of calling a chain of functions."""

    code: int = PLUGIN_RET_OK  # of the last function called
    plugin: str = ""  # the plugin that ended the chain
    changed: Mapping[str, str] = field(default_factory=dict)  # the last plugin that changed a field, by field
    failed: str = ""  # a plugin whose function failed


NOTHING = Outcome()


class Hooks(Protocol):
    """Calls the functions of the loaded plugins: plugins/manager.py."""

    @property
    def chains(self) -> Mapping[str, Any]:
        """Return the functions of each hook that is in use. Without plugins, a hook costs one lookup."""

    def run(self, hook: str, event: Any, session: Any = None) -> Outcome:
        """Call all functions of a hook in order, until one returns STOP or ERROR. May yield."""

    def run_briefly(self, hook: str, event: Any, session: Any) -> Outcome:
        """Do the same for a session that cannot wait: abandon a plugin that takes too long. May yield."""

    def packet_tap(self, session: Any) -> Tap | None:
        """Return the packet hook of a session's path, None while no plugin has one. Does not yield."""

    def reads_avpair(self, key: str) -> bool:
        """Return whether a plugin may read AVPairs of this key."""


def octets(text: str) -> bytes:
    """Encode a subscriber's name or password. Octets that are not UTF-8 survive (surrogateescape)."""
    return text.encode("utf-8", "surrogateescape")


def text(octets: bytes) -> str:
    """Decode a subscriber's name or password, for `octets` to restore."""
    return octets.decode("utf-8", "surrogateescape")
