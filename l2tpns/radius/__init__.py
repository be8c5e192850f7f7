"""The RADIUS client: logins, and accounting records that wait on disk until a server has them (RFC 2865, RFC 2866)."""
