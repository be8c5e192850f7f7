"""Throttling by RADIUS: applies the Cisco-AVPairs of a reply, and reports the rates in accounting.

    throttle=yes                                          both directions at throttle_speed
    throttle=512                                          both directions at this rate in kbit/s
    throttle=no                                           not throttled
    lcp:interface-config#1=service-policy input 512       packets from the subscriber
    lcp:interface-config#2=service-policy output 2000     packets to the subscriber

When an online session is authenticated again, the new reply replaces the old one. See docs/throttling.md.
"""

from l2tpns.plugins import PluginError

plugin_api_version = 1
plugin_avpairs = ("throttle", "lcp:interface-config")

INTERFACE_CONFIG, POLICY = "lcp:interface-config", "service-policy"
YES, NO = ("yes", "on", "true"), ("no", "off", "false", "0")


def plugin_init(server):
    global SERVER
    SERVER = server


def plugin_radius_response(event):
    session, key, value = event.session, event.key.lower(), event.value.strip().lower()
    try:
        if key == "throttle":
            throttle(session, value)
        elif key.partition("#")[0] == INTERFACE_CONFIG and value.split()[:1] == [POLICY]:
            serve(session, value.split()[1:])
    except PluginError as error:
        SERVER.log("warning", str(error), session=session.id, user=session.user, avpair=f"{event.key}={event.value}")


def plugin_radius_reset(event):
    event.session.unthrottle()


def plugin_radius_account(event):
    rate_in, rate_out = event.session.rate_in, event.session.rate_out
    if rate_in and rate_in == rate_out:
        event.avpair(f"throttle={rate_in}")
        return
    if rate_in:
        event.avpair(f"{INTERFACE_CONFIG}#1={POLICY} input {rate_in}")
    if rate_out:
        event.avpair(f"{INTERFACE_CONFIG}#2={POLICY} output {rate_out}")


def throttle(session, value):
    if value in NO:
        session.unthrottle()
    elif value in YES:
        session.throttle()
    else:
        session.throttle(rate(value), rate(value))


def serve(session, words):
    if len(words) != 2 or words[0] not in ("input", "output"):
        raise PluginError("service-policy takes input or output, then a rate")
    if words[0] == "input":
        session.throttle(rate_in=rate(words[1]))
    else:
        session.throttle(rate_out=rate(words[1]))


def rate(word):
    if not (word.isascii() and word.isdigit() and 0 < int(word[:9])):
        raise PluginError(f"{word!r:.40} is not a rate in kbit/s")
    return int(word[:9])
