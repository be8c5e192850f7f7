"""Throttling by nsctl, for all sessions of a user or for one session. Rates are in kbit/s.

nsctl: throttle USER|SID [RATE | in RATE | out RATE | in RATE out RATE], unthrottle USER|SID

The default rate is throttle_speed. See docs/throttling.md.
"""

from l2tpns.plugins import PLUGIN_RET_ERROR, PLUGIN_RET_OK, PLUGIN_RET_STOP, PluginError

plugin_api_version = 1
plugin_control_help = [
    "throttle USER|SID [RATE | in RATE | out RATE] - limit the rate of sessions, in kbit/s",
    "unthrottle USER|SID - remove the rate limits of sessions",
]


def plugin_init(server):
    global SERVER
    SERVER = server


def plugin_control(event):
    command, *words = event.argv
    if command not in ("throttle", "unthrottle"):
        return PLUGIN_RET_OK
    try:
        if not words or (command == "unthrottle" and len(words) > 1):
            raise PluginError("usage: " + plugin_control_help[command == "unthrottle"].partition(" - ")[0])
        rates = parse(words[1:])
        sessions = SERVER.find(words[0])
        change = throttle if command == "throttle" else unthrottle
        changed = [line for session in sessions if (line := change(session, *rates))]
        if not changed:
            raise PluginError("already throttled" if command == "throttle" else "not throttled")
        event.response = "\n".join(changed)
    except PluginError as error:
        event.response = str(error)
        return PLUGIN_RET_ERROR
    return PLUGIN_RET_STOP


def throttle(session, rate_in, rate_out):
    """Throttle the session. Return a message, empty if nothing changed."""
    before = session.rate_in, session.rate_out
    session.throttle(rate_in, rate_out)
    if before == (session.rate_in, session.rate_out):
        return ""
    rates = [f"{way} {rate}" for way, rate in (("in", session.rate_in), ("out", session.rate_out)) if rate]
    return f"session {session.id} is throttled: {' '.join(rates)} kbit/s"


def unthrottle(session, rate_in, rate_out):
    if not (session.rate_in or session.rate_out):
        return ""
    session.unthrottle()
    return f"session {session.id} is not throttled any more"


def parse(words):
    """Return (rate in, rate out). None leaves a rate as it is; both None stand for throttle_speed."""
    if len(words) == 1:
        return rate(words[0]), rate(words[0])
    rates = {"in": None, "out": None}
    if len(words) % 2 or any(word not in rates for word in words[::2]):
        raise PluginError("rates are RATE, in RATE, out RATE, or in RATE out RATE")
    for way, word in zip(words[::2], words[1::2], strict=True):
        rates[way] = rate(word)
    return rates["in"], rates["out"]


def rate(word):
    if not (word.isascii() and word.isdigit() and 0 < int(word[:9])):
        raise PluginError(f"{word!r:.40} is no rate: kbit/s, and not 0")
    return int(word[:9])
