"""Check logins with an HTTP API before RADIUS. The API can refuse a login or replace the user name.

    load plugin "httpauth"
    set httpauth_url "http://127.0.0.1:8080/login"
    set httpauth_timeout 3

Each login is one POST of a JSON object: username, protocol (pap or chap), calling, called, lac, session; no password.
The reply is a JSON object: {"allow": false} refuses the login, {"username": "NAME"} replaces the name. Other members
are ignored, and the login proceeds to RADIUS. Only the subscriber concerned waits for the API. httpauth_fail decides
what happens when the API does not reply.
"""

import json
import time
import urllib.request

from l2tpns.plugins import PLUGIN_RET_OK, PLUGIN_RET_STOP, Count, Server, Variable, param_pre_auth

MAX_OCTETS = 65536  # of a reply
WARNING_INTERVAL = 10.0  # seconds between two warnings about an API that does not reply

server: Server
url: Variable[str]
timeout: Variable[int]
fail: Variable[str]
asked: Count
refused: Count
failed: Count
last_warning = -WARNING_INTERVAL


def plugin_init(given: Server) -> None:
    global server, url, timeout, fail, asked, refused, failed
    server = given
    url = server.setting("url", "", "URL that each login is posted to (default: none, no login is checked)")
    timeout = server.setting("timeout", 3, "seconds to wait for a reply", minimum=1, maximum=60)
    fail = server.setting(
        "fail",
        "open",
        "logins without a reply: open passes them on to RADIUS, closed refuses them",
        choices=("open", "closed"),
    )
    asked = server.counter("asked", "logins checked with the HTTP API")
    refused = server.counter("refused", "logins refused by the HTTP API")
    failed = server.counter("failed", "requests that the HTTP API did not answer")


def plugin_pre_auth(event: param_pre_auth) -> int:
    if not url.value:
        return PLUGIN_RET_OK
    asked.add()
    try:
        answer = ask(event)
    except (OSError, ValueError) as error:  # no connection, no time, no HTTP, no JSON
        warn(event.username, error)
        event.continue_auth = fail.value == "open"
        return PLUGIN_RET_OK
    if answer.get("allow") is False:
        refused.add()
        event.continue_auth = False
        return PLUGIN_RET_STOP
    name = answer.get("username")
    if isinstance(name, str) and name:
        event.username = name
    return PLUGIN_RET_OK


def warn(user: str, error: Exception) -> None:
    """Count the failure and log a warning, at most one per WARNING_INTERVAL."""
    global last_warning
    failed.add()
    if time.monotonic() - last_warning >= WARNING_INTERVAL:
        last_warning = time.monotonic()
        server.log("warning", "the HTTP API did not answer", user=user, why=str(error), then=fail.value)


def ask(event: param_pre_auth) -> dict[str, object]:
    """Return the API's reply. Raises OSError or ValueError without a valid one."""
    session = event.session
    question = {
        "username": event.username.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
        "protocol": "pap" if event.protocol == 0xC023 else "chap",
        "calling": session.calling,
        "called": session.called,
        "lac": session.lac,
        "session": session.id,
    }
    request = urllib.request.Request(url.value, json.dumps(question).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout.value) as reply:
        answer = json.loads(reply.read(MAX_OCTETS))
    if not isinstance(answer, dict):
        raise ValueError("the reply is not a JSON object")
    return answer
