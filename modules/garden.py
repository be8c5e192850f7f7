"""The walled garden: rejected subscribers are admitted, but reach only what the operator's rules permit.

A rejected login is accepted, and its session is put into the garden `garden`, or into the one given by the Cisco-AVPair
`garden=NAME` of the Reject. `garden=no` in a Reject keeps the login rejected. In an Accept `garden=NAME` selects a
garden, and `garden=no` releases a session that is authenticated again.

When a garden is built, build-garden (beside the configuration, or `set garden_script`) is run if it exists and is
executable. It decides where the connections of the garden's users go. See docs/garden.md.

nsctl: garden USER|SID [NAME], ungarden SID [NEWUSER]
"""

import os
import stat

from gevent import Timeout, subprocess

from l2tpns.plugins import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP, PluginError

plugin_api_version = 1
plugin_avpairs = ("garden",)
plugin_control_help = [
    "garden USER|SID [NAME] - move a session into a walled garden",
    "ungarden SID [NEWUSER] - release it, as after a new login",
]

NAME = "garden"
YES, NO = ("yes", "on", "true", "1"), ("no", "off", "false", "0", "")
SCRIPT_TIMEOUT = 30.0  # seconds for build-garden
MAX_LOGGED = 2000  # characters of its output


def plugin_init(server):
    global SERVER, SCRIPT
    SERVER = server
    SCRIPT = server.setting("script", "", "program that fills a garden's chain (default: build-garden in /etc/l2tpns)")
    server.on_garden(build)


def plugin_post_auth(event):
    """Accept a rejected login if its garden is available."""
    if event.auth_allowed:
        return
    named = dict(event.avpairs).get("garden", event.session.garden or "yes")
    if named.lower() in NO:
        return
    if put(event.session, named):
        event.auth_allowed = True


def plugin_radius_response(event):
    if event.key != "garden":
        return
    session = event.session
    if event.value.lower() not in NO:
        put(session, event.value)
    elif session.garden:
        session.leave_garden()


def put(session, named):
    """Move the session into this garden. Return True if it is there."""
    name = NAME if named.lower() in YES else named
    try:
        if session.garden != name:
            session.enter_garden(name)
    except PluginError as error:
        SERVER.log("error", str(error), session=session.id, user=session.user)
    return session.garden == name


def plugin_control(event):
    """nsctl garden, nsctl ungarden."""
    command, *words = event.argv
    if command not in ("garden", "ungarden"):
        return PLUGIN_RET_OK
    try:
        if not 1 <= len(words) <= 2:
            raise PluginError("usage: " + plugin_control_help[command == "ungarden"].partition(" - ")[0])
        sessions = SERVER.find(words[0])
        if len(sessions) > 1:
            ids = ", ".join(str(session.id) for session in sessions)
            raise PluginError(f"{words[0]} has several sessions, {ids}: name one")
        (session,) = sessions
        if command == "garden":
            session.enter_garden(*words[1:])
        else:
            session.leave_garden(*words[1:])
    except PluginError as error:
        event.response = str(error)
        return PLUGIN_RET_ERROR
    event.response = f"session {session.id} is {'in' if command == 'garden' else 'out of'} the walled garden"
    return PLUGIN_RET_STOP


# build-garden


def script():
    return SCRIPT.value or os.path.join(os.environ.get("L2TPNS_ETC", "/etc/l2tpns"), "build-garden")


def damage(path):
    """Return what is wrong with the first line, where the kernel's error does not say it."""
    try:
        with open(path, "rb") as file:
            first = file.readline(200)
    except OSError:
        return ""
    if first.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return "it begins with a byte order mark: save it as UTF-8 without one"
    if first.startswith(b"#!") and first.rstrip(b"\n").endswith(b"\r"):
        return "its lines end in CR LF: save it with LF alone"
    return ""


def build(name, chain):
    """Run build-garden for a garden. Return True if it was run."""
    path = script()
    try:
        found = os.stat(path)
    except OSError:
        return False
    if not os.access(path, os.X_OK):
        SERVER.log("info", "build-garden is not executable: it was not run", path=path, garden=name)
        return False
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        SERVER.log("error", "build-garden is writable by other users: it was not run", path=path)
        return False
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "GARDEN": name, "CHAIN": chain}
    try:
        process = subprocess.Popen(
            [path, name, chain],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
        )
    except OSError as error:
        SERVER.log("error", f"build-garden cannot be run: {damage(path) or error.strerror}", path=path)
        return False
    said, status = b"", None
    try:
        with Timeout(SCRIPT_TIMEOUT):
            said, _ = process.communicate()
            status = process.returncode
    except Timeout:
        os.killpg(process.pid, 9)
        process.wait()
    level = "info" if status == 0 else "error"
    text = "build-garden has filled the chain" if status == 0 else "build-garden failed"
    output = said.decode(errors="replace")[:MAX_LOGGED]
    SERVER.log(level, text, garden=name, chain=chain, status=status, output=output)
    return True
