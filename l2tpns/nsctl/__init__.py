"""nsctl: the command line client (__main__.py) and the server's side (server.py)."""
