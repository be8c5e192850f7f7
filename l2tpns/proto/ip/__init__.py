"""IPv4 and ICMP headers: what the data path reads and the errors that it answers with. Pure."""
