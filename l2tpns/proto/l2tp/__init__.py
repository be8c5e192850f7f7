"""L2TP (RFC 2661): headers, AVPs, messages and their reliable delivery. Pure."""
