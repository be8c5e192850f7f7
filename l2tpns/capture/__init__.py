"""Copies of intercepted packets: the form they have on the wire, and `l2tpns-capture`, which makes a file of them.

Knows nothing of the server, and runs without it.
"""
