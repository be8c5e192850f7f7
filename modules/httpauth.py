"""Ask an HTTP API before RADIUS is: who may not log in is refused there, and the API may give another user name.

    load plugin "httpauth"
    set httpauth_url "http://127.0.0.1:8080/login"
    set httpauth_timeout 3

Each login is one POST with a JSON object: username, protocol (pap or chap), calling, called, lac, session; no password.
The answer is a JSON object, too: {"allow": false} refuses the login, {"username": "NAME"} replaces the name; whatever
else is in it, the login goes on to RADIUS. While the API thinks, only the subscriber concerned waits. What becomes of
logins that it does not answer, httpauth_fail says.
"""

import json
import time
import urllib.request

from l2tpns.plugins import PLUGIN_RET_OK, PLUGIN_RET_STOP, Count, Server, Variable, param_pre_auth

MOST_OCTETS = 65536  # of an answer
QUIET = 10.0  # seconds between two lines of the log about an API that does not answer

server: Server
url: Variable[str]
timeout: Variable[int]
fail: Variable[str]
asked: Count
refused: Count
failed: Count
complained = -QUIET


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
        complain(event.username, error)
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


def complain(user: str, error: Exception) -> None:
    """Once in a while: the counter tells how often."""
    global complained
    failed.add()
    if time.monotonic() - complained >= QUIET:
        complained = time.monotonic()
        server.log("warning", "the HTTP API did not answer", user=user, why=str(error), then=fail.value)


def ask(event: param_pre_auth) -> dict[str, object]:
    """The API's answer. OSError or ValueError when there is none."""
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
        answer = json.loads(reply.read(MOST_OCTETS))
    if not isinstance(answer, dict):
        raise ValueError("the reply is not a JSON object")
    return answer
