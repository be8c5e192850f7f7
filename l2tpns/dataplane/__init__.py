"""The data path: UDP sockets, the tun device, and the loops that carry packets between them.

plane.py is the seam that the rest of l2tpns sees; userspace.py implements it in this process.
"""
