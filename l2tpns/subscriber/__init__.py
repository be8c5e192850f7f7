"""One subscriber: its call, PPP link, login, address and timers."""
