"""IPv4 and ICMP as the data path reads and builds them, and arithmetic of prefixes. Pure."""
