"""Pure codecs and automata: no socket, clock, greenlet, log or random source."""
