"""The only room that changes the kernel: netlink, iptables, traffic control, the tun device; and giving up root."""
