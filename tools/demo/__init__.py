"""The demonstration (`make demo`)."""
