"""What carries packets: sockets, the tun device, and the loops between them.

plane.py is the seam that the rest of l2tpns sees; user.py implements it in user space.
"""
