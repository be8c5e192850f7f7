"""nsctl: the command line client and the server's side of its packets."""
