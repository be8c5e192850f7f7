"""Derive the upstream speed from the downstream speed if the LAC reports only one: for old ADSL products."""

from l2tpns.plugins import PLUGIN_RET_OK, param_post_auth

plugin_avpairs = ()
RX_OF_TX = {256: 64, 512: 128, 1500: 256}  # kbit/s


def plugin_post_auth(event: param_post_auth) -> int:
    session = event.session
    tx = session.tx_speed
    if event.auth_allowed and session.rx_speed in (0, tx):  # a LAC that reports one speed is taken to mean both
        unit = 1 if tx < 10_000 else 1000  # some LACs send kbit/s; RFC 2661 specifies bit/s
        rx = RX_OF_TX.get(tx // unit)
        if rx is not None:
            session.rx_speed = rx * unit
    return PLUGIN_RET_OK
