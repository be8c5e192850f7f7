"""Interception by nsctl: `nsctl snoop USER|SID [IP PORT]`, `nsctl unsnoop USER|SID`.

Without an address the copies are sent to snoop_host and snoop_port. A user name means all sessions of this user. The
audit log records the client, the subscriber and the sink; no other log does.
"""

from l2tpns.plugins import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP, PluginError

plugin_api_version = 1
plugin_control_help = [
    "snoop USER|SID [IP PORT] - send copies of all packets of a user or session there (default: snoop_host)",
    "unsnoop USER|SID - stop sending copies",
]


def plugin_init(server):
    global SERVER
    SERVER = server


def plugin_control(event):
    command, *words = event.argv
    if command not in ("snoop", "unsnoop"):
        return PLUGIN_RET_OK
    by = f"nsctl {event.source_ip}:{event.source_port}"
    try:
        if command == "snoop":
            event.response = snoop(words, by)
        else:
            event.response = unsnoop(words, by)
    except PluginError as error:
        event.response = str(error)
        return PLUGIN_RET_ERROR
    return PLUGIN_RET_STOP


def snoop(words, by):
    if len(words) not in (1, 3):
        raise PluginError("usage: snoop USER|SID [IP PORT]")
    for session in SERVER.find(words[0]):
        session.snoop(*words[1:], by=by)
    return f"snooping {words[0]}"


def unsnoop(words, by):
    if len(words) != 1:
        raise PluginError("usage: unsnoop USER|SID")
    sessions = SERVER.find(words[0])
    if not any(session.sink for session in sessions):
        raise PluginError("not snooped")
    for session in sessions:
        session.unsnoop(by=by)
    return f"not snooping {words[0]}"
