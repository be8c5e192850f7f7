"""Policies imposed on a session from outside: rates, walled gardens, packet filters, interception."""
