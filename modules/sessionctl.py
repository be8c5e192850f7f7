"""nsctl drop|kill USER|SID [REASON]: disconnect sessions, in an orderly way (drop) or immediately (kill)."""

from l2tpns.plugins import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP, PluginError, Server, param_control

plugin_control_help = (
    "drop USER|SID [REASON] - disconnect sessions in an orderly way",
    "kill USER|SID [REASON] - disconnect sessions immediately",
)

server: Server


def plugin_init(given: Server) -> None:
    global server
    server = given


def plugin_control(event: param_control) -> int:
    command, *words = event.argv
    if command not in ("drop", "kill"):
        return PLUGIN_RET_OK
    if not words:
        event.response = f"usage: {command} USER|SID [REASON]"
        return PLUGIN_RET_ERROR
    try:
        sessions = server.find(words[0])
    except PluginError as error:
        event.response = str(error)
        return PLUGIN_RET_ERROR
    reason = " ".join(words[1:]) or f"{command} by nsctl from {event.source_ip}"
    for session in sessions:
        server.log("info", f"{command} by nsctl", session=session.id, user=session.user, why=reason)
        if command == "drop":
            session.drop(reason)
        else:
            session.kill(reason)
    event.response = f"{command}: " + ", ".join(f"session {session.id} ({session.user})" for session in sessions)
    return PLUGIN_RET_STOP
