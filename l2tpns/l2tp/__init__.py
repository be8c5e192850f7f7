"""The control connection with a LAC (RFC 2661)."""
