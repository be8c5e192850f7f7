"""Calls the plugin hooks of a session: login, start, accounting, end (manual: Plugins).

All hooks are called here, except those of packets, nsctl and the timer, and a plugin's own (init, done, save). Hooks of
a login may block as long as RADIUS may: they run in a background greenlet (PppLink.run_in_background) while the session
serves its mailbox. Where a session cannot wait, a hook is abandoned after a few seconds. Without plugins no event is
built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import monotonic
from typing import Any

from l2tpns.hooks import (
    octets,
    param_kill_session,
    param_new_session,
    param_post_auth,
    param_pre_auth,
    param_radius_account,
    param_radius_change,
    param_radius_reset,
    param_radius_response,
    text,
)
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.radius import usage
from l2tpns.radius.attribute_values import OWN_AVPAIRS, avpair_key
from l2tpns.radius.types import AuthReply, Usage
from l2tpns.subscriber.services import Services
from l2tpns.subscriber.state import SessionState

SECRET_AVPAIRS = ("intercept",)
MAX_KEY = 64  # characters of a key in the log
UNREAD = "neither the server nor a loaded plugin handles it"
FORBIDDEN_ATTRIBUTES = ("User-Password", "CHAP-Password", "Message-Authenticator", "State", "Proxy-State")


def radius_reset(session: SessionState) -> None:
    """Notify plugins that RADIUS has authorized an online session again. May yield."""
    session.services.hooks.run("radius_reset", param_radius_reset(session.tunnel.id, session.id), session)


def pre_auth(session: SessionState, credentials: Credentials) -> tuple[Credentials, AuthReply | None]:
    """Return the credentials as plugins leave them, and a reply if a plugin has refused the login. May yield."""
    hooks = session.services.hooks
    if "pre_auth" not in hooks.chains:
        return credentials, None
    by_pap = credentials.protocol == Protocol.PAP
    event = param_pre_auth(
        t=session.tunnel.id,
        s=session.id,
        username=text(credentials.name),
        password=text(credentials.password) if by_pap else "",
        protocol=credentials.protocol,
    )
    outcome = hooks.run("pre_auth", event, session)
    if "username" in outcome.changed:
        credentials = replace(credentials, name=octets(event.username))
        session.log.call(
            "user_renamed", user=session.user, new_user=credentials.user, plugin=outcome.changed["username"]
        )
    if "password" in outcome.changed and by_pap:
        credentials = replace(credentials, password=octets(event.password))
    if event.continue_auth:
        return credentials, None
    return credentials, AuthReply(accepted=False, why=f"refused by plugin {outcome.changed['continue_auth']}")


def post_auth(session: SessionState, credentials: Credentials, reply: AuthReply) -> AuthReply:
    """Return the verdict as plugins leave it. May yield.

    A Reject that a plugin turns into a success keeps its attributes: the RADIUS server may name a garden, a rate or an
    address in it. Its Reply-Message is dropped, since it describes a refusal.
    """
    hooks = session.services.hooks
    if "post_auth" not in hooks.chains:
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
    outcome = hooks.run("post_auth", event, session)
    if event.auth_allowed == reply.accepted:
        return reply
    by = outcome.changed["auth_allowed"]
    session.log.info("verdict_overruled", user=session.user, allowed=event.auth_allowed, plugin=by, why=event.reason)
    return replace(reply, accepted=event.auth_allowed, message=b"", why="" if event.auth_allowed else f"plugin {by}")


def radius_response(session: SessionState, reply: AuthReply) -> None:
    """Pass each AVPair of a positive reply to plugins, and log those that are not handled. May yield."""
    hooks = session.services.hooks
    if "radius_response" in hooks.chains:
        for key, value in reply.avpairs:
            hooks.run("radius_response", param_radius_response(session.tunnel.id, session.id, key, value), session)
    log_unread(session.services, reply)


def radius_change(session: SessionState, by: str, avpairs: list[tuple[str, str]], changed: tuple[str, ...]) -> None:
    """Pass to plugins the AVPairs of a CoA-Request that only they read, then what it has changed. May yield."""
    hooks = session.services.hooks
    for key, value in avpairs:
        hooks.run("radius_response", param_radius_response(session.tunnel.id, session.id, key, value), session)
    if "radius_change" in hooks.chains:
        hooks.run("radius_change", param_radius_change(session.tunnel.id, session.id, by, changed), session)


def log_unread(services: Services, reply: AuthReply) -> None:
    """Log the key of each AVPair that is not handled, once an hour. Do not log the value, which may be secret.

    The lines name no session, since an AVPair may request an interception.
    """
    for key in dict.fromkeys(avpair_key(key) for key, _ in reply.avpairs):
        if key in OWN_AVPAIRS or services.hooks.reads_avpair(key) or not services.unread_avpairs.due(key, monotonic()):
            continue
        if key in SECRET_AVPAIRS:
            services.log.secret_audit("avpair_ignored", key=key, why=UNREAD)
        else:
            services.log.warning("avpair_ignored", key=key[:MAX_KEY], why=UNREAD)


def new_session(session: SessionState, resumed: bool = False) -> None:
    """Notify plugins that the session is online, in a background greenlet. May yield."""
    hooks = session.services.hooks
    session.plugins_notified = True
    if "new_session" in hooks.chains:
        event = param_new_session(session.tunnel.id, session.id, resumed)
        session.link.run_in_background(lambda: hooks.run("new_session", event, session))


def kill_session(session: SessionState, cause: str) -> None:
    """Notify plugins that know the session of its end, or of a new login on the same call. May yield."""
    if session.plugins_notified:
        session.plugins_notified = False
        event = param_kill_session(session.tunnel.id, session.id, cause)
        session.services.hooks.run_briefly("kill_session", event, session)


def accounted(session: SessionState, kind: str, used: Usage) -> Usage:
    """Return a record with the attributes that plugins add to it. May yield."""
    hooks = session.services.hooks
    if "radius_account" not in hooks.chains:
        return used
    event = param_radius_account(
        t=session.tunnel.id,
        s=session.id,
        kind=kind,
        avpairs=[],
        attributes=[],
        check=checker(kind, used),
    )
    hooks.run_briefly("radius_account", event, session)
    avpairs = tuple(_spoolable(pair) for pair in event.avpairs if isinstance(pair, str) and pair)
    attributes = tuple((entry[0], _spoolable(entry[1])) for entry in event.attributes if _is_attribute(entry))
    return replace(used, avpairs=(*used.avpairs, *avpairs), attributes=attributes)


def _is_attribute(entry: Any) -> bool:
    """Return whether an entry is a name with a text or number: a plugin may append anything to the list."""
    if type(entry) is not tuple or [*map(type, entry)] not in ([str, str], [str, int]):
        return False
    return type(entry[1]) is str or 0 <= entry[1] < 2**32


def _spoolable(value: Any) -> Any:
    """Return a value that JSON can hold, with octets that are not UTF-8 as backslash escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def checker(kind: str, used: Usage) -> Callable[[str, Any], None]:
    """Return a function that raises ValueError for an attribute that such a record cannot carry."""

    def check(name: str, value: Any) -> None:
        packet = usage.sample(kind, used)
        if type(value) not in (str, int):
            raise ValueError(f"{name} must be text or a number, not {type(value).__name__}")
        if name in FORBIDDEN_ATTRIBUTES or name in packet:
            raise ValueError(f"plugins may not add {name} to an accounting record")
        usage.put_attribute(packet, name, value)

    return check
