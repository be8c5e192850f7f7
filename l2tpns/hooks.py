"""The hooks: each declared once, with the event that its functions are given (manual: Plugins; reference 7).

The loader's check, the calls and docs/plugins.md are loops over HOOKS. The fields have the manual's names; those of
`session` and a few more are ours. A field that may be changed is declared by `changeable`; any other, and a value of
another type, is refused where the plugin assigns it, by an exception that names the field.
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
    """The session of an event: what plugins see of it is in session_api.py."""

    @property
    def id(self) -> int: ...


def given(help: str, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that a plugin may read."""
    return dataclasses.field(default=default, metadata={_HELP: help})


def changeable(help: str, kind: type, *, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that a plugin may set, to a value of this type."""
    return dataclasses.field(default=default, metadata={_HELP: help, _TYPE: kind})


class Event:
    """What a hook's functions are given, one after the other."""

    __slots__ = ()
    changeable: ClassVar[dict[str, type]] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Once made, only what may be changed, and only to what it may be."""
        if hasattr(self, name):
            kind = self.changeable.get(name)
            if kind is None:
                may = ", ".join(self.changeable) or "nothing"
                raise AttributeError(f"{type(self).__name__}.{name} may not be changed; what may: {may}")
            if kind is bool and value in (0, 1):
                value = bool(value)
            if not isinstance(value, kind):
                raise TypeError(f"{type(self).__name__}.{name} must be {kind.__name__}, not {type(value).__name__}")
        object.__setattr__(self, name, value)

    def state(self) -> tuple[Any, ...]:
        """What may be changed, as it is now."""
        return tuple(getattr(self, name) for name in self.changeable)

    def restore(self, state: tuple[Any, ...]) -> None:
        for name, value in zip(self.changeable, state, strict=True):
            object.__setattr__(self, name, value)

    @property
    def secret(self) -> str:
        """What no log line may show, even if a plugin puts it into an exception."""
        return ""

    @property
    def over(self) -> bool:
        """Nobody else is to be asked, whatever the return code."""
        return False


@dataclass_transform(field_specifiers=(given, changeable))
def event(cls: type[E]) -> type[E]:
    """A class of events: with slots, so that a misspelt field is an error."""
    made: Any = dataclass(slots=True)(cls)
    made.changeable = {f.name: f.metadata[_TYPE] for f in dataclasses.fields(made) if _TYPE in f.metadata}
    return cast("type[E]", made)


T = "our id of the tunnel"
S = "our id of the session"
SESSION = "the session: see below"
PROTOCOL = "0xC023 for PAP, 0xC223 for CHAP"


@event
class param_pre_auth(Event):
    """A subscriber has answered PAP or CHAP, and RADIUS is about to be asked."""

    t: int = given(T)
    s: int = given(S)
    username: str = changeable("the name; RADIUS, accounting and `show session` have it as the plugins leave it", str)
    password: str = changeable("of PAP; with CHAP it is empty, and a change is not used", str)
    protocol: int = given(PROTOCOL)
    continue_auth: bool = changeable("set to 0 (False) to refuse the login: nobody else is asked", bool, default=True)
    session: Session = given(SESSION, default=None)

    @property
    def secret(self) -> str:
        return self.password

    @property
    def over(self) -> bool:
        return not self.continue_auth


@event
class param_post_auth(Event):
    """RADIUS, or the secrets file, has answered; the subscriber does not know yet. Not called when nobody answered."""

    t: int = given(T)
    s: int = given(S)
    username: str = given("the name")
    auth_allowed: bool = changeable("the verdict so far; set to 1 or 0 (True or False) to force another", bool)
    protocol: int = given(PROTOCOL)
    reason: str = given("of a refusal: the server's Reply-Message, or what is known", default="")
    avpairs: tuple[tuple[str, str], ...] = given("key and value of each Cisco-AVPair in the answer", default=())
    session: Session = given(SESSION, default=None)


@event
class param_radius_response(Event):
    """Once for each `key=value` of each Cisco-AVPair, in their order, after the verdict is positive: also that of a
    Reject which a plugin has turned into success, whose attributes count as an Accept's."""

    t: int = given(T)
    s: int = given(S)
    key: str = given("before the `=`")
    value: str = given("behind it")
    session: Session = given(SESSION, default=None)


@event
class param_new_session(Event):
    """The session is online and carries traffic. Again after a restart of the server that kept the session."""

    t: int = given(T)
    s: int = given(S)
    resumed: bool = given("taken up again after a restart", default=False)
    session: Session = given(SESSION, default=None)


@event
class param_kill_session(Event):
    """A session that has asked to log in is about to end, and still has its address and counters: once for each."""

    t: int = given(T)
    s: int = given(S)
    cause: str = given("why, as in the log: `cause`", default="")
    session: Session = given(SESSION, default=None)


@event
class param_radius_reset(Event):
    """RADIUS is about to give a session that is online another policy: undo what its answers had you do.
    The radius_response events of the new answer follow."""

    t: int = given(T)
    s: int = given(S)
    session: Session = given(SESSION, default=None)


@event
class param_radius_account(Event):
    """An accounting record is about to be written."""

    t: int = given(T)
    s: int = given(S)
    kind: str = given("`start`, `interim` or `stop`")
    session: Session = given(SESSION, default=None)
    avpairs: list[str] = given("Cisco-AVPairs to send: append texts such as `intercept=yes`", default=None)
    attributes: list[tuple[str, str | int]] = given("more attributes: use `add`", default=None)
    check: Callable[[str, Any], None] = given("for `add`", default=None)

    def add(self, name: str, value: str | int) -> None:
        """Send one more attribute, by its name in the dictionary, as often as it is added. ValueError if that cannot
        be: the dictionary does not know it, it cannot have this value, or the record has it already."""
        self.check(name, value)
        self.attributes.append((name, value))

    def avpair(self, text: str) -> None:
        """Send one more Cisco-AVPair."""
        if not isinstance(text, str) or not 0 < len(text.encode("utf-8", "surrogateescape")) <= 247:
            raise ValueError(f"{text!r:.60} is no Cisco-AVPair: text of 1 to 247 octets")
        self.avpairs.append(text)


@event
class param_timer(Event):
    """Each second; if a function takes longer, those that were missed are not made up for."""

    time_now: int = given("unix time")


@event
class param_control(Event):
    """nsctl has sent a command that the server itself does not know."""

    argv: tuple[str, ...] = given("the words: command, then arguments")
    source_ip: str = given("where the request came from")
    source_port: int = given("its port")
    buf: bytes = given("the raw packet", default=b"")
    l: int = given("its length", default=0)  # noqa: E741 - the manual's name
    type: int = given("type of request", default=0)
    id: int = given("id of the request", default=0)
    data: bytes = given("what follows the packet's header", default=b"")
    data_length: int = given("its length", default=0)
    response: str = changeable("the answer", str, default="")
    send_response: bool = changeable(
        "set to 1 (True) to claim a command with PLUGIN_RET_OK and no words", bool, default=False
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
    "buf": ("bytes", "the raw IP packet; set it to another, and that one is carried in its place", True),
    "len": ("int", "its length", False),
    "session": ("Session", SESSION, False),
}


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook: the function `plugin_NAME` of every plugin that has it is called, in the order of loading."""

    name: str
    event: type[Any] | None  # None: see `when`
    stop: str
    error: str
    when: str = ""
    arguments: int = 1

    @property
    def function(self) -> str:
        return f"plugin_{self.name}"

    @property
    def fields(self) -> dict[str, tuple[str, str, bool]]:
        """Type, help and whether it may be changed, of each of the event's fields."""
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
        "The plugin is loaded; its argument is the server. Optional. Whatever it declares is undone if it fails.",
    ),
    Hook("done", None, "as OK", "as OK", "The plugin is removed, or the server leaves.", arguments=0),
    Hook(
        "save",
        None,
        "-",
        "-",
        "The plugin is about to be replaced (`reload plugin`): what it returns is the new one's `server.saved`.",
        arguments=0,
    ),
    Hook("pre_auth", param_pre_auth, _NO_MORE, f"{_NO_MORE}; the login goes on"),
    Hook("post_auth", param_post_auth, _NO_MORE, f"{_NO_MORE}; the verdict is as it was left"),
    Hook("radius_response", param_radius_response, "no further plugin sees this pair", _FAILED),
    Hook("new_session", param_new_session, _NO_MORE, _FAILED),
    Hook("kill_session", param_kill_session, _NO_MORE, _FAILED),
    Hook("radius_reset", param_radius_reset, _NO_MORE, _FAILED),
    Hook("radius_account", param_radius_account, _NO_MORE, "as STOP; what was added is sent"),
    Hook("timer", param_timer, "no further plugin has this second", _FAILED),
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
# Other names of a plugin's that begin with plugin_, and what they are.
NAMES = {
    "plugin_api_version": "the integer of the interface it was written for; another than ours is refused",
    "plugin_avpairs": "keys of the Cisco-AVPairs that it reads, without `#1`: those that no plugin reads are named in "
    "the log. Without it, a plugin with `plugin_post_auth` or `plugin_radius_response` is taken to read all",
    "plugin_control_help": "lines that `nsctl help` shows: a list of texts, or a function that returns one",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a chain of functions made of an event."""

    code: int = PLUGIN_RET_OK  # of the last one that was called
    plugin: str = ""  # which ended the chain
    changed: Mapping[str, str] = field(default_factory=dict)  # the last plugin that changed a field, by field
    failed: str = ""  # a plugin whose function failed


NOTHING = Outcome()


class Hooks(Protocol):
    """Calls the functions of the plugins that are loaded: plugins/manager.py."""

    @property
    def chains(self) -> Mapping[str, Any]:
        """Return the functions of each hook that any plugin has. Without plugins, a hook costs one look in here."""

    def run(self, hook: str, event: Any, session: Any = None) -> Outcome:
        """Call all functions of a hook in order, until one returns STOP or ERROR. May yield."""

    def run_briefly(self, hook: str, event: Any, session: Any) -> Outcome:
        """Do the same for a session that cannot wait: give up a plugin that takes too long. May yield."""

    def packet_tap(self, session: Any) -> Tap | None:
        """Return what stands in a session's path, None while no plugin has a packet hook. Does not yield."""

    def reads_avpair(self, key: str) -> bool:
        """Return whether a plugin may read AVPairs of this key."""


def octets(text: str) -> bytes:
    """Encode a subscriber's name or password. Octets that are not UTF-8 survive (surrogateescape)."""
    return text.encode("utf-8", "surrogateescape")


def text(octets: bytes) -> str:
    """Decode a subscriber's name or password, for `octets` to restore."""
    return octets.decode("utf-8", "surrogateescape")
