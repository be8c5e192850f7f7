"""Timeouts and delays of the console, in seconds. Tests pass shorter ones."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConsoleTiming:
    """The timing of all consoles of a server."""

    login: float = 60.0  # for the whole login
    access_denied: float = 1.0  # between a wrong password and the refusal
    password_check: float = 0.25  # after a wrong password, before the next one of any console is checked
    send: float = 60.0  # for a peer that reads nothing
    refusal_send: float = 2.0  # for the line that a refused connection gets
    listen_retry: float = 10.0  # between two attempts to listen again
