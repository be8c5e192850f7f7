"""Where the life of a session consults plugins: at the login, when it comes online, is accounted, and ends.

Each hook is called here and nowhere else, but for those of packets, nsctl and the clock. Hooks of a login may wait as
long as RADIUS may: they run beside the session's greenlet (Session.aside), which serves its mailbox. Where a session
cannot wait, a hook has PATIENCE seconds. Without plugins nothing is built and nothing is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING, Any

from l2tpns.plugins.hooks import (
    param_kill_session,
    param_new_session,
    param_post_auth,
    param_pre_auth,
    param_radius_account,
    param_radius_reset,
    param_radius_response,
)
from l2tpns.plugins.server_api import octets, text
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius import usage
from l2tpns.radius.attribute_values import OWN_AVPAIRS, avpair_key
from l2tpns.radius.types import AuthReply, Usage

if TYPE_CHECKING:
    from l2tpns.lns import Lns
    from l2tpns.proto.ppp.credentials import Credentials
    from l2tpns.subscriber.session import Session

SECRET_AVPAIRS = ("intercept",)
MOST_OF_KEY = 64
UNREAD = "neither the server nor a plugin that is loaded reads it"
UNREAD_INTERVAL = 3600.0  # seconds between two lines of the log about a key that nothing reads
NOT_OURS = ("User-Password", "CHAP-Password", "Message-Authenticator", "State", "Proxy-State")


def decide(session: Session, credentials: Credentials) -> tuple[Credentials, AuthReply]:
    """A login: the credentials as plugins leave them, and the verdict. Raises NoAnswer."""
    credentials, refusal = pre_auth(session, credentials)
    session.user = credentials.user
    if refusal is not None:
        return credentials, refusal
    reply = ask(session, credentials)
    if reply.accepted:
        radius_response(session, reply)
    return credentials, reply


def decide_again(session: Session, credentials: Credentials, state: bytes) -> AuthReply:
    """RADIUS is asked again for a session that is online (RFC 2865 5.29): its answer replaces the first one."""
    reply = ask(session, credentials, state)
    if reply.accepted:
        session.lns.plugins.run("radius_reset", param_radius_reset(session.tunnel.id, session.id), session)
        radius_response(session, reply)
    return reply


def ask(session: Session, credentials: Credentials, state: bytes = b"") -> AuthReply:
    """The question, and what plugins make of the answer."""
    reply = session.lns.backend.authenticate(session.auth_request(credentials, state))
    return post_auth(session, credentials, reply)


def pre_auth(session: Session, credentials: Credentials) -> tuple[Credentials, AuthReply | None]:
    """The credentials as plugins leave them; and a refusal, if a plugin wants nobody to be asked."""
    plugins = session.lns.plugins
    if "pre_auth" not in plugins.chains:
        return credentials, None
    by_pap = credentials.protocol == Protocol.PAP
    event = param_pre_auth(
        t=session.tunnel.id,
        s=session.id,
        username=text(credentials.name),
        password=text(credentials.password) if by_pap else "",
        protocol=credentials.protocol,
    )
    outcome = plugins.run("pre_auth", event, session)
    if "username" in outcome.changed:
        credentials = replace(credentials, name=octets(event.username))
        session.log.call(
            "user_renamed", user=session.user, new_user=credentials.user, plugin=outcome.changed["username"]
        )
    if "password" in outcome.changed and by_pap:
        credentials = replace(credentials, password=octets(event.password))
    if event.continue_auth:
        return credentials, None
    return credentials, AuthReply(accepted=False, why=f"plugin {outcome.changed['continue_auth']} refused it")


def post_auth(session: Session, credentials: Credentials, reply: AuthReply) -> AuthReply:
    """The verdict as plugins leave it. A Reject that becomes a success keeps its attributes, as an Accept's: whoever
    rejects may name the garden, the rate, the address. Its message is not shown: it tells of a refusal."""
    plugins = session.lns.plugins
    if "post_auth" not in plugins.chains:
        return reply
    event = param_post_auth(
        t=session.tunnel.id,
        s=session.id,
        username=text(credentials.name),
        auth_allowed=reply.accepted,
        protocol=credentials.protocol,
        reason="" if reply.accepted else reply.message.decode("utf-8", "backslashreplace") or reply.why,
        avpairs=reply.avpairs,
    )
    outcome = plugins.run("post_auth", event, session)
    if event.auth_allowed == reply.accepted:
        return reply
    by = outcome.changed["auth_allowed"]
    session.log.info("verdict_overruled", user=session.user, allowed=event.auth_allowed, plugin=by, why=event.reason)
    return replace(reply, accepted=event.auth_allowed, message=b"", why="" if event.auth_allowed else f"plugin {by}")


def radius_response(session: Session, reply: AuthReply) -> None:
    plugins = session.lns.plugins
    if "radius_response" in plugins.chains:
        for key, value in reply.avpairs:
            plugins.run("radius_response", param_radius_response(session.tunnel.id, session.id, key, value), session)
    name_unread(session.lns, reply)


def name_unread(lns: Lns, reply: AuthReply) -> None:
    """Log the keys of AVPairs that nothing reads, each once in a while; not their values, which may be secrets.

    The lines name no session: an AVPair may be meant to have one intercepted.
    """
    for key in dict.fromkeys(avpair_key(key) for key, _ in reply.avpairs):
        if key in OWN_AVPAIRS or lns.plugins.reads_avpair(key) or not lns.unread_avpairs.due(key, monotonic()):
            continue
        if key in SECRET_AVPAIRS:
            lns.log.secret_audit("avpair_ignored", key=key, why=UNREAD)
        else:
            lns.log.warning("avpair_ignored", key=key[:MOST_OF_KEY], why=UNREAD)


def new_session(session: Session, resumed: bool = False) -> None:
    """The session is online."""
    plugins = session.lns.plugins
    session.introduced = True
    if "new_session" in plugins.chains:
        event = param_new_session(session.tunnel.id, session.id, resumed)
        session.aside(lambda: plugins.run("new_session", event, session))


def kill_session(session: Session, cause: str) -> None:
    """The session is about to end, or its subscriber to begin anew; told once, if it has been told of at all."""
    if session.introduced:
        session.introduced = False
        event = param_kill_session(session.tunnel.id, session.id, cause)
        session.lns.plugins.run_briefly("kill_session", event, session)


def accounted(session: Session, kind: str, used: Usage) -> Usage:
    """A record with what plugins add to it."""
    plugins = session.lns.plugins
    if "radius_account" not in plugins.chains:
        return used
    event = param_radius_account(
        t=session.tunnel.id,
        s=session.id,
        kind=kind,
        avpairs=[],
        attributes=[],
        check=checker(kind, used),
    )
    plugins.run_briefly("radius_account", event, session)
    avpairs = tuple(_spoolable(pair) for pair in event.avpairs if isinstance(pair, str) and pair)
    attributes = tuple((entry[0], _spoolable(entry[1])) for entry in event.attributes if _is_attribute(entry))
    return replace(used, avpairs=(*used.avpairs, *avpairs), attributes=attributes)


def _is_attribute(entry: Any) -> bool:
    """A plugin can put anything into a list."""
    if type(entry) is not tuple or [*map(type, entry)] not in ([str, str], [str, int]):
        return False
    return type(entry[1]) is str or 0 <= entry[1] < 2**32


def _spoolable(value: Any) -> Any:
    """Text that JSON can hold: octets that were no UTF-8 are in words."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def checker(kind: str, used: Usage) -> Callable[[str, Any], None]:
    """Whether an attribute can go into a record: tried on a packet like it."""

    def check(name: str, value: Any) -> None:
        packet = usage.sample(kind, used)
        if type(value) not in (str, int):
            raise ValueError(f"{name} must be text or a number, not {type(value).__name__}")
        if name in NOT_OURS or name in packet:
            raise ValueError(f"{name} is not for plugins to add to an accounting record")
        usage.put_attribute(packet, name, value)

    return check
