"""Interception by RADIUS: Cisco-AVPair `intercept=yes`, `intercept=no` or `intercept=IP:PORT` in the Accept.

Every packet is copied, starting with the subscriber's first one: to snoop_host and snoop_port, or to the address and
port given by RADIUS. Accounting records of an intercepted session carry `intercept=IP:PORT`. If interception is not
possible, the subscriber is admitted all the same. Only the audit log has `snoop_refused`, which names the subscriber.
"""

from l2tpns.plugins import PLUGIN_RET_OK, PluginError

plugin_api_version = 1
plugin_avpairs = ("intercept",)

YES, NO = ("yes", "on", "true", "1"), ("no", "off", "false", "0")


ASKED = set()  # sessions intercepted by RADIUS


def plugin_init(server):
    global SERVER
    SERVER = server


def plugin_radius_response(event):
    if event.key != "intercept":
        return PLUGIN_RET_OK
    word = event.value.strip().lower()
    try:
        if word in NO:
            ASKED.discard(event.session)
            event.session.unsnoop(by="radius")
            return PLUGIN_RET_OK
        if word in YES:
            event.session.snoop(by="radius")
        else:
            address, _, port = word.rpartition(":")
            event.session.snoop(address or "none", port, by="radius")
        ASKED.add(event.session)
    except PluginError:
        SERVER.log("error", "RADIUS requested an interception that is not possible: the audit log has the details")
    return PLUGIN_RET_OK


def plugin_radius_reset(event):
    """Stop interception by RADIUS; the reply may start it again. An operator's interception continues."""
    if event.session in ASKED:
        ASKED.discard(event.session)
        event.session.unsnoop(by="radius")


def plugin_kill_session(event):
    ASKED.discard(event.session)


def plugin_radius_account(event):
    sink = event.session.sink
    if sink is not None:
        event.avpair("intercept={}:{}".format(*sink))
