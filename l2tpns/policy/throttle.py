"""Throttling: rate limits of a session in each direction (manual: Throttling; docs/throttling.md).

Packets to the subscriber, framed routes included, queue in an HTB class of the kernel (system/shaping.py). Packets from
the subscriber are policed in the data path (dataplane/policer.py). Rates count IP packets, in kbit/s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from time import monotonic

import gevent
from gevent.lock import RLock

from l2tpns.config.settings import Config
from l2tpns.dataplane.plane import DataPlane
from l2tpns.dataplane.policer import Policer
from l2tpns.dataplane.rate import Rate
from l2tpns.policy.model import Changes, PolicyError, Subscriber
from l2tpns.radius.rates import MAX_RATE
from l2tpns.runtime.log import Logger
from l2tpns.runtime.text import printable
from l2tpns.system.shaping import Shaped, Shaper, ShapingError, handle

CHUNK = 20  # buckets created before this greenlet yields


class Throttle:
    """Enforces the rates of all sessions; a PolicyPart. `sessions` is the server's table, by id."""

    def __init__(
        self, config: Config, log: Logger, plane: DataPlane, changes: Changes, sessions: Mapping[int, Subscriber]
    ) -> None:
        self._config = config
        self._log = log
        self._plane = plane
        self._changes = changes
        self._sessions = sessions
        self._shaper: Shaper | None = None
        self._buckets: dict[Subscriber, tuple[int, tuple[IPv4Network, ...]]] = {}
        self._lock = RLock()  # netlink may block; meanwhile a session may end or be throttled

    # Requests of operators, RADIUS and plugins

    def set(self, session: Subscriber, rate_in: int | None = None, rate_out: int | None = None, *, by: str) -> None:
        """Set the rates in kbit/s. May yield. Raises PolicyError, and the rates stay as they were.

        0 removes the limit, None keeps the current rate. If both are None, both become throttle_speed.
        """
        if rate_in is None and rate_out is None:
            rate_in = rate_out = self.default()
        policy = session.policy
        rates = (
            policy.rate_in if rate_in is None else rate_in,
            policy.rate_out if rate_out is None else rate_out,
        )
        if not all(0 <= rate <= MAX_RATE for rate in rates):
            raise PolicyError(f"a rate must be between 0 and {MAX_RATE} kbit/s")
        self._change(session, *rates)
        if any(rates):
            session.log.info("throttled", user=session.user, by=by, **self._facts(session))

    def clear(self, session: Subscriber, *, by: str) -> None:
        """Remove both limits. Does nothing if the session is not throttled. May yield."""
        if session.policy.throttled:
            self._change(session, 0, 0)
            session.log.info("unthrottled", user=session.user, by=by)

    def default(self) -> int:
        """Return the rate that applies when a request names none. Raises PolicyError if throttle_speed is 0."""
        if not self._config.throttle_speed:
            raise PolicyError("throttle_speed is 0: set it, or enter a rate")
        return self._config.throttle_speed

    def bucket(self, session: Subscriber) -> str | None:
        """Return the HTB class of a session in the notation of tc, None if it has none (manual: Filter Bucket)."""
        held = self._buckets.get(session)
        return None if held is None else handle(held[0])

    @property
    def buckets(self) -> int:
        """Return the number of HTB classes in use."""
        return len(self._buckets)

    # The life of sessions

    def begin(self, session: Subscriber) -> None:
        if session.policy.throttled:
            self._enforce(session)
            if self._shaper is not None:  # else the session was restored, and was logged then
                session.log.info("throttled", user=session.user, by="login", **self._facts(session))

    def finish(self, session: Subscriber) -> None:
        with self._lock:
            self._set_rates(session, 0, 0)
            self._remove_policer(session)
            self._release(session)

    # The kernel

    def start(self, shaper: Shaper) -> None:
        """Set the shaper. Restored sessions get their buckets one by one, in a background greenlet."""
        waiting = [session for session in self._sessions.values() if session.policy.rate_out]
        try:
            shaper.start(bool(self._config.throttle_speed or waiting))
        except ShapingError as error:
            self._log.error("throttling_impaired", why=str(error))
        self._shaper = shaper
        if waiting:
            gevent.spawn(self._catch_up, waiting)

    def move(self, device: int) -> None:
        """Recreate all buckets on `device`, the index of a new tun device that replaces a deleted one."""
        if self._shaper is None:
            return
        rates = [(bucket, session.policy.rate_out) for session, (bucket, _) in self._buckets.items()]
        try:
            self._shaper.move(device, rates)
        except ShapingError as error:
            self._log.error("throttling_impaired", why=str(error))

    def stop(self) -> None:
        """Remove all throttling from the kernel."""
        if self._shaper is None:
            return
        shaper, self._shaper = self._shaper, None
        self._buckets.clear()
        try:
            shaper.stop()
        except ShapingError as error:
            self._log.error("throttling_impaired", why=str(error))

    def restore_queues(self) -> list[str]:
        """Restore queues of the tun device that another program removed. Return what was missing, in words."""
        return [] if self._shaper is None else self._shaper.restore_queues()

    def _catch_up(self, sessions: list[Subscriber]) -> None:
        for number, session in enumerate(sessions):
            if session.online_since:
                self._enforce(session)
            if number % CHUNK == CHUNK - 1:
                gevent.sleep(0.001)

    def _change(self, session: Subscriber, rate_in: int, rate_out: int) -> None:
        """Set these rates. Raises PolicyError, and the rates stay as they were."""
        with self._lock:
            if session.online_since:
                self._apply(session, rate_in, rate_out)
            session.change_policy(rate_in=rate_in, rate_out=rate_out)
            if session.online_since:
                self._changes.session(session)

    def _enforce(self, session: Subscriber) -> None:
        """Enforce the policy of a session. Log an error if the kernel refuses the shaping."""
        with self._lock:
            if not session.online_since:
                return  # it ended while this waited for the lock
            policy = session.policy
            try:
                self._apply(session, policy.rate_in, policy.rate_out)
            except PolicyError as error:
                session.log.error("throttle_refused", user=session.user, rate_out=policy.rate_out, why=str(error))
                self._apply_policer(session, policy.rate_in)

    def method(self, rate_in: int, rate_out: int) -> str:
        """Return "kernel" if excess of these rates is to be dropped by the data path, "htb" if it is to be queued."""
        chosen = self._config.throttle_method
        if chosen != "auto":
            return chosen
        lowest = min((rate for rate in (rate_in, rate_out) if rate), default=0)
        fits = lowest >= self._config.throttle_kernel_min and self._plane.fast_path().running
        return "kernel" if fits else "htb"

    def method_of(self, session: Subscriber) -> str:
        """Return how the rates of a session are enforced now: "kernel", "htb", or "" without any."""
        path = session.path
        if path.rate_in is not None or path.rate_out is not None:
            return "kernel"
        return "htb" if path.policer is not None or path.shaped else ""

    def _apply(self, session: Subscriber, rate_in: int, rate_out: int) -> None:
        """Enforce rates by the method that fits them. Raises PolicyError, and the rates stay as they were.

        The new limits hold before the old ones end.
        """
        if self.method(rate_in, rate_out) == "kernel":
            self._set_rates(session, rate_in, rate_out)
            self._remove_policer(session)
            self._release(session)
            return
        self._shape(session, rate_out)
        self._apply_policer(session, rate_in)
        self._set_rates(session, 0, 0)

    def _set_rates(self, session: Subscriber, rate_in: int, rate_out: int) -> None:
        """Have the data path drop what exceeds these rates."""
        path, burst = session.path, self._config.throttle_burst
        rates = tuple(Rate.of(rate, burst) if rate else None for rate in (rate_in, rate_out))
        if rates != (path.rate_in, path.rate_out):
            path.rate_in, path.rate_out = rates
            self._plane.changed(path)

    def _apply_policer(self, session: Subscriber, rate: int) -> None:
        path = session.path
        if rate == (path.policer.rate if path.policer is not None else 0):
            return
        if not rate:
            self._remove_policer(session)
            return
        if path.policer is not None:
            path.policer.change(rate)
        else:
            path.policer = Policer(rate, monotonic())
        self._plane.changed(path)

    def _remove_policer(self, session: Subscriber) -> None:
        path = session.path
        policer, path.policer = path.policer, None
        if policer is not None:
            policer.end(carried=path.online)
            self._plane.changed(path)

    def _shape(self, session: Subscriber, rate: int) -> None:
        shaper, held = self._shaper, self._buckets.get(session)
        if shaper is None:
            return
        if not rate:
            self._release(session)
            return
        try:
            if held is not None:
                if rate != session.policy.rate_out:
                    shaper.change(held[0], rate)
                return
            limit = self._config.throttle_buckets
            if len(self._buckets) >= limit:
                raise PolicyError(f"all throttle_buckets are in use ({limit})")
            assert session.address is not None
            networks = tuple(dict.fromkeys((IPv4Network(session.address), *session.path.routes)))
            bucket = shaper.shape(Shaped(rate, networks))
        except ShapingError as error:
            raise PolicyError(f"throttling is unavailable: {error}") from None
        self._buckets[session] = bucket, networks
        session.path.shaped = True
        self._plane.changed(session.path)

    def _release(self, session: Subscriber) -> None:
        held = self._buckets.pop(session, None)
        if held is None or self._shaper is None:
            return
        session.path.shaped = False
        self._plane.changed(session.path)
        try:
            self._shaper.release(*held)
        except ShapingError as error:
            session.log.error("throttling_impaired", user=session.user, why=str(error))

    def _facts(self, session: Subscriber) -> dict[str, object]:
        policy = session.policy
        return {
            "rate_in": policy.rate_in,
            "rate_out": policy.rate_out,
            "bucket": self.bucket(session),
            "method": self.method_of(session),
        }


def parse_rates(words: Sequence[str]) -> tuple[int | None, int | None]:
    """Parse `RATE`, `in RATE`, `out RATE`, both, or nothing. Return rates for Throttle.set. Raises PolicyError."""
    if len(words) == 1:
        rate = parse_rate(words[0])
        return rate, rate
    rates: dict[str, int | None] = {"in": None, "out": None}
    if len(words) % 2:
        raise PolicyError("rates are RATE, in RATE, out RATE, or in RATE out RATE")
    for direction, rate_word in zip(words[::2], words[1::2], strict=True):
        if direction not in rates:
            raise PolicyError(f'"{printable(direction)}" is neither in nor out')
        rates[direction] = parse_rate(rate_word)
    return rates["in"], rates["out"]


def parse_rate(word: str) -> int:
    """Parse a rate in kbit/s, 1 or more. Raises PolicyError."""
    if not (word.isascii() and word.isdigit() and len(word) <= 8 and 0 < int(word) <= MAX_RATE):
        raise PolicyError(f'"{printable(word)}" is not a rate: enter 1 to {MAX_RATE} kbit/s')
    return int(word)
