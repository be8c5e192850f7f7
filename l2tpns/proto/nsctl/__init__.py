"""The nsctl packet formats and their authentication. Pure."""
