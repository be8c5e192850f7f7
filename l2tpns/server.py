"""One server: the LNS with all that it uses, built in an order in which each part is given those it needs.

The daemon builds one (components.py), and so does each test. Nothing here opens a socket or changes the kernel.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from l2tpns.config.settings import Config
from l2tpns.dataplane.plane import DataPlane
from l2tpns.l2tp.timing import TunnelLimits, TunnelTiming
from l2tpns.l2tp.tunnel import Tunnel
from l2tpns.lns import Lns
from l2tpns.plugins.manager import Plugins
from l2tpns.policy import filters
from l2tpns.policy.garden import Gardens, GardenTiming
from l2tpns.policy.snoop import Snoop
from l2tpns.policy.taps import Taps
from l2tpns.policy.throttle import Throttle
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.types import Backend
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.log import Logger
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.state import snapshot
from l2tpns.state.disk import DiskSink
from l2tpns.state.journal import JOURNAL_INTERVAL, Journal
from l2tpns.state.store import StateStore
from l2tpns.subscriber.address_guard import AddressGuard
from l2tpns.subscriber.pools import Pools
from l2tpns.subscriber.registry import Registry
from l2tpns.subscriber.routable import Routable
from l2tpns.subscriber.services import Services, SessionTiming
from l2tpns.subscriber.session import Session
from l2tpns.subscriber.usage_files import UsageFiles


class Server:
    """The LNS with its journal and its plugins.

    `plane` calls `lns.on_control` and `guard.apply_surroundings`: see `UserPlane`.
    """

    def __init__(
        self,
        config: Config,
        counters: Counters,
        log: Logger,
        pool: Pools,
        backend: Backend,
        accounting: Accounting,
        plane: DataPlane,
        *,
        random: Callable[[int], bytes] = os.urandom,
        supervisor: Supervisor | None = None,
        awake: AwakeClock | None = None,
        session_timing: SessionTiming | None = None,
        tunnel_timing: TunnelTiming | None = None,
        tunnel_limits: TunnelLimits | None = None,
        garden_timing: GardenTiming | None = None,
        journal_interval: float = JOURNAL_INTERVAL,
    ) -> None:
        supervisor = supervisor or Supervisor(log)
        tunnels: dict[int, Tunnel] = {}
        sessions: dict[int, Session] = {}
        routable = Routable(config)
        registry: Registry[Session] = Registry(config, pool, routable)
        self.journal = Journal(log, supervisor, plane, tunnels, sessions, interval=journal_interval)
        self.plugins = Plugins(config, log, supervisor)
        taps = Taps(plane, self.plugins, sessions)
        self.services = Services(
            config=config,
            counters=counters,
            log=log,
            random=random,
            awake=awake or AwakeClock(),
            supervisor=supervisor,
            plane=plane,
            backend=backend,
            accounting=accounting,
            pool=pool,
            registry=registry,
            guard=AddressGuard(log, plane, pool, registry, routable, sessions, lambda: self.lns.lac_addresses()),
            hooks=self.plugins,
            changes=self.journal,
            gardens=Gardens(counters, log, supervisor, plane, self.journal, garden_timing),
            throttle=Throttle(config, log, plane, self.journal, sessions),
            snoop=Snoop(config, counters, log, self.journal, taps, sessions, pool.contains, registry.by_address.get),
            taps=taps,
            usage_files=UsageFiles(config, log, supervisor, sessions),
            session_timing=session_timing or SessionTiming(),
        )
        self.lns = Lns(self.services, tunnels, sessions, tunnel_timing, tunnel_limits)
        self.plugins.begin(self.services, sessions)

    def keep_state(self, store: StateStore) -> None:
        """Have the journal write to this store when it is started."""
        services, lns = self.services, self.lns
        self.journal.sinks.append(
            DiskSink(
                services.config,
                services.log,
                store,
                lambda: snapshot.lines(lns.tunnels, lns.sessions),
                self.journal.wake.set,
            )
        )

    def hand_over(self) -> bool:
        """Save the state for the next process, and send nothing any more. Return False if that failed. May yield."""
        services = self.services
        services.plane.retreat()
        services.plane.hold()  # or packets would be carried after the last counters were saved
        services.handed_over = self.journal.write_final()
        if not services.handed_over:
            services.plane.resume()
        return services.handed_over

    def refresh_filters(self) -> None:
        """Have all sessions use the access lists of the configuration as they are now."""
        services = self.services
        filters.refresh_filters(services.plane, services.config.filters, self.lns.sessions.values(), services.log)
