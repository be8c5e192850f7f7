"""Copies of intercepted packets: their form on the wire, and `l2tpns-capture`, which writes them to a file.

Knows nothing of the server and runs without it.
"""
