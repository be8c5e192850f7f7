"""Codecs and automata of the protocols, all pure: no socket, clock, greenlet, log or random source."""
