"""Interception by RADIUS: Cisco-AVPair `intercept=yes`, `intercept=no` or `intercept=IP:PORT` in the Accept.

Every packet is copied, from the subscriber's first one on: to snoop_host and snoop_port, or to the address and port
that RADIUS names. Accounting records of a session that is intercepted say so: `intercept=IP:PORT`. What cannot be done
does not keep the subscriber out; it is `snoop_refused` in the audit log, which alone tells who is intercepted.
"""

from l2tpns.plugins import PLUGIN_RET_OK, PluginError

plugin_api_version = 1
plugin_avpairs = ("intercept",)

YES, NO = ("yes", "on", "true", "1"), ("no", "off", "false", "0")


ASKED = set()  # sessions that RADIUS has had intercepted


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
    """The answer that follows says whether it goes on; what an operator has begun does."""
    if event.session in ASKED:
        ASKED.discard(event.session)
        event.session.unsnoop(by="radius")


def plugin_kill_session(event):
    ASKED.discard(event.session)


def plugin_radius_account(event):
    sink = event.session.sink
    if sink is not None:
        event.avpair("intercept={}:{}".format(*sink))
