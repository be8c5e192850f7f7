"""The login of a session: authentication by PAP, CHAP or MS-CHAP, and the verdict.

RFC 1334, RFC 1994, RFC 2433, RFC 2759, RFC 2865 2.

The subscriber authenticates by the protocol that LCP negotiated, or has done so at the LAC (RFC 2661 4.4.5). Plugins
and the backend (RADIUS or the secrets file) decide in a background greenlet while the session serves its mailbox.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import gevent

from l2tpns import causes
from l2tpns.causes import SessionEnded
from l2tpns.errors import NoAnswer
from l2tpns.proto.ppp.chap import ChapServer
from l2tpns.proto.ppp.credentials import Credentials
from l2tpns.proto.ppp.frame import Protocol
from l2tpns.proto.ppp.lcp import AuthChoice
from l2tpns.proto.ppp.mschap import MsChap1Server, MsChap2Server
from l2tpns.proto.ppp.pap import PapServer
from l2tpns.radius.types import AuthReply
from l2tpns.subscriber import accounting, authorization, network, plugin_hooks
from l2tpns.subscriber.layers import Authenticator
from l2tpns.subscriber.link import Renegotiated
from l2tpns.subscriber.phase import Phase
from l2tpns.subscriber.state import SessionState

T = TypeVar("T")


def authenticate(session: SessionState) -> None:
    """Authenticate the subscriber and apply the reply of RADIUS. May yield. Raises SessionEnded if it is refused."""
    link, services = session.link, session.services
    link.phase = Phase.AUTHENTICATE
    authenticator = link.authenticator = new_authenticator(session, link.lcp.auth)
    session.credentials, session.proxied = session.proxied, None  # used only once
    if session.credentials is not None:
        authenticator.adopt(session.credentials)
        session.log.debug("proxy_authentication_used")
    else:
        authenticator.start(link.now())
        link.wait(lambda: session.credentials is not None)
    first = session.credentials
    assert first is not None
    session.user = first.user
    session.acct_session_id = services.acct_session_ids.new()
    session.plugins_notified = True
    session.credentials, reply = decide(session, lambda: login(session, first))
    reply = proved(authenticator, reply)
    if not reply.accepted:
        refuse(session, authenticator, reply)
    # The proof is this login's only: the profile is kept and saved.
    authorization.apply(session, replace(reply, proof=b"") if reply.proof else reply, initial=True)
    authenticator.verdict(True, reply.message, proof=reply.proof)
    services.counters.logins_accepted += 1
    if reply.session_timeout == 0 and services.config.kill_timedout_sessions:
        raise SessionEnded(causes.SESSION_TIMEOUT, text="Session-Timeout is 0")
    network.end_older(session, services.registry.login(session), causes.DUPLICATE_USER)


def proved(authenticator: Authenticator, reply: AuthReply) -> AuthReply:
    """Return the reply, as a refusal if the subscriber would not believe it: no plugin can make up a proof."""
    if reply.accepted and authenticator.proves and not reply.proof:
        why = "accepted without the proof that MS-CHAPv2 needs"
        return replace(reply, accepted=False, message=b"", why=why)
    return reply


SERVERS = {
    AuthChoice.CHAP_MD5: ChapServer,
    AuthChoice.MS_CHAP_1: MsChap1Server,
    AuthChoice.MS_CHAP_2: MsChap2Server,
}


def new_authenticator(session: SessionState, choice: AuthChoice | None) -> Authenticator:
    """Return the authenticator for the protocol that LCP negotiated."""
    link, services = session.link, session.services
    if choice is AuthChoice.PAP:
        return PapServer(partial(link.send_frame, Protocol.PAP), link.mru)
    name, server = services.config.hostname.encode(), SERVERS.get(choice or AuthChoice.CHAP_MD5, ChapServer)
    return server(partial(link.send_frame, Protocol.CHAP), services.random, name, link.timers(), link.mru)


def on_credentials(session: SessionState, credentials: Credentials) -> None:
    """Handle credentials of a login or of a later challenge (RFC 1994 2.2). Does not yield."""
    if session.phase is Phase.AUTHENTICATE:
        session.credentials = credentials
    elif session.profile is not None:
        gevent.spawn(reverify, session, credentials)


def decide(session: SessionState, decision: Callable[[], T]) -> T:
    """Run a decision of plugins and RADIUS in the background. May yield. Raises SessionEnded without a reply."""
    try:
        return session.link.run_in_background(decision)
    except NoAnswer:
        session.services.counters.logins_unanswered += 1
        session.log.warning("auth_unanswered", user=session.user)
        raise SessionEnded(causes.RADIUS_SILENT) from None


def login(session: SessionState, credentials: Credentials) -> tuple[Credentials, AuthReply]:
    """Return the credentials of a login, as plugins leave them, and the verdict. May yield. Raises NoAnswer."""
    credentials, refusal = plugin_hooks.pre_auth(session, credentials)
    session.user = credentials.user
    if refusal is not None:
        return credentials, refusal
    reply = query_backend(session, credentials)
    if reply.accepted:
        authorization.apply_rates(session, reply)
        plugin_hooks.radius_response(session, reply)
    return credentials, reply


def query_backend(session: SessionState, credentials: Credentials, state: bytes = b"") -> AuthReply:
    """Return the reply of the backend, as plugins leave it. May yield. Raises NoAnswer."""
    reply = session.services.backend.authenticate(accounting.auth_request(session, credentials, state))
    return plugin_hooks.post_auth(session, credentials, reply)


def refuse(session: SessionState, authenticator: Authenticator, reply: AuthReply) -> None:
    """Send the refusal to the subscriber, and wait before the CDN so that it is received. Raises SessionEnded."""
    session.services.counters.logins_refused += 1
    why = reply.why or reply.message or "no reason given"
    session.log.info("auth_refused", user=session.user, calling=session.calling, why=why)
    authenticator.verdict(False, reply.message, error=reply.error)
    tell = True
    try:
        session.link.wait(lambda: False, session.services.session_timing.refusal_grace)
    except SessionEnded as end:
        tell = end.tell
    except Renegotiated:
        pass
    raise SessionEnded(causes.AUTH_REFUSED, tell=tell)


def reverify(session: SessionState, credentials: Credentials) -> None:
    """Check the response to a later challenge (RFC 1994 2.2). Runs in its own greenlet. May yield."""
    authenticator = session.link.authenticator
    try:
        credentials, refusal = plugin_hooks.pre_auth(session, credentials)
        reply = refusal or query_backend(session, credentials)
    except NoAnswer:
        reply = AuthReply(accepted=True)  # without a reply, the earlier verdict stays
    if authenticator is not None and session.link.authenticator is authenticator:  # else LCP was renegotiated
        same = reply.accepted and session.services.registry.same_user(credentials.user, session.user)
        authenticator.verdict(same, reply.message, proof=reply.proof, error=reply.error)
        if not same:
            why = reply.why or reply.message or "no reason given"
            session.log.info("auth_refused", user=credentials.user, why=why)
            session.end(causes.AUTH_REFUSED)


def reauthorize(session: SessionState) -> None:
    """Authorize the session again after Session-Timeout, if Termination-Action asks for it (RFC 2865 5.29).

    May yield. Raises SessionEnded unless RADIUS accepts the session.
    """
    profile = session.profile
    if profile is None or profile.termination_action != 1 or session.credentials is None:
        raise SessionEnded(causes.SESSION_TIMEOUT)
    try:
        reply = decide(session, partial(login_again, session, session.credentials, profile.state))
    except SessionEnded as end:
        if end.cause is not causes.RADIUS_SILENT:
            raise
        raise SessionEnded(causes.SESSION_TIMEOUT) from end
    if not reply.accepted:
        raise SessionEnded(causes.SESSION_TIMEOUT)
    authorization.apply(session, reply, initial=False)
    session.services.changes.session(session)


def login_again(session: SessionState, credentials: Credentials, state: bytes) -> AuthReply:
    """Return the reply of RADIUS that replaces that of an online session. May yield. Raises NoAnswer."""
    reply = query_backend(session, credentials, state)
    if reply.accepted:
        plugin_hooks.radius_reset(session)
        authorization.apply_rates(session, reply, session.profile)
        plugin_hooks.radius_response(session, reply)
    return reply
