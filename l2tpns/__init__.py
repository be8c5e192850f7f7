"""l2tpns: an L2TP network server (LNS): RFC 2661, PPP, RADIUS, one tun device for all subscribers."""

__version__ = "0.1.0"
