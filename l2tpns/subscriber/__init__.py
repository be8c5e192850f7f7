"""One subscriber: a call, its PPP link, its login, its address, its timers."""
