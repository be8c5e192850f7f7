"""The components of the daemon: built in order, started in order, stopped in the reverse order.

daemon.py decides when this happens, and what a signal or a changed configuration means. The components that carry
tunnels and sessions are built by server.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from l2tpns.config.settings import Config
from l2tpns.console.context import ConsoleContext
from l2tpns.console.server import Console
from l2tpns.dataplane.fastpath.plane import KernelPlane
from l2tpns.dataplane.fastpath.programs import Loader
from l2tpns.errors import ConfigError, ReportError, WaitError
from l2tpns.monitoring.bandwidth import BandwidthMeter
from l2tpns.monitoring.problems import Finding
from l2tpns.monitoring.service import MonitoringService
from l2tpns.nsctl.server import NsctlServer
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.dynamic import DynamicAuthorization
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.types import Backend
from l2tpns.runtime import process
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.clock import elapsed, moment
from l2tpns.runtime.counters import Counters
from l2tpns.runtime.descriptor_store import DescriptorStore
from l2tpns.runtime.log import Log, Logger
from l2tpns.runtime.shutdown_steps import ShutdownSteps
from l2tpns.runtime.supervisor import Supervisor
from l2tpns.runtime.watchdog import Watchdog
from l2tpns.server import Server
from l2tpns.state.records import Replay
from l2tpns.state.restore import Resumed, resume
from l2tpns.state.store import StateStore
from l2tpns.subscriber.dynamic import DynamicAuthority
from l2tpns.subscriber.pools import Pools
from l2tpns.system import cleanup
from l2tpns.system.firewall import Firewall
from l2tpns.system.garden_rules import GardenRules
from l2tpns.system.instance import instance_of
from l2tpns.system.ipset import IpSets
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.port_errors import PortErrors
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.shaping import KernelShaper
from l2tpns.system.tun_device import mark_of

HANDOVER_TIMEOUT = 0.5  # seconds to deliver accounting records when the next process goes on with the sessions


@dataclass(frozen=True, slots=True)
class Foundation:
    """What exists before the first component is built, and after the last one has stopped."""

    config: Config
    log: Log
    logger: Logger
    counters: Counters
    awake: AwakeClock
    supervisor: Supervisor
    service_manager: process.ServiceManager
    spare: process.Spare
    steps: ShutdownSteps
    fast_path_loader: Loader
    descriptors: DescriptorStore


class Components:
    """All components of one daemon.

    `context` returns what the consoles may use. `fail` is called with the reason why the server cannot go on.
    """

    def __init__(
        self,
        foundation: Foundation,
        pool: Pools,
        backend: Backend,
        radius_settings: RadiusSettings,
        *,
        context: Callable[[Server, BandwidthMeter], ConsoleContext],
        fail: Callable[[ConfigError | ReportError], None],
    ) -> None:
        """Build all components, each given those it uses, and register how they stop. Open nothing.

        They stop in the reverse order of their registration: consoles first, then sessions, plugins, the data path,
        what is in the kernel, and at last accounting, which has to deliver what the others have written.
        """
        self._foundation = foundation
        self._pool = pool
        self.config = config = foundation.config
        self.logger = foundation.logger
        awake, supervisor = foundation.awake, foundation.supervisor
        self.store = StateStore(config.state_dir or process.state_directory() / "state", self.logger)
        self.accounting = Accounting(
            radius_settings, self._spool_directory(), self.logger, awake=awake, supervisor=supervisor
        )
        self.plane = KernelPlane(
            config,
            foundation.counters,
            self.logger,
            lambda datagram, peer, endpoint: self.lns.on_control(datagram, peer, endpoint),
            on_lost=lambda: fail(WaitError(f"{config.tundevicename} was deleted and cannot be created again")),
            on_surroundings=lambda surroundings: self.services.guard.apply_surroundings(surroundings),
            supervisor=supervisor,
            mark=mark_of(self.store.directory),
            store=foundation.descriptors,
        )
        self.plane.loader = foundation.fast_path_loader
        self.plane.hold()
        self.server = server = Server(
            config,
            foundation.counters,
            self.logger,
            pool,
            backend,
            self.accounting,
            self.plane,
            awake=awake,
            supervisor=supervisor,
        )
        self.lns, self.services = server.lns, server.services
        self.plane.on_device = self.services.throttle.move
        self.plane.restore_queues = self.services.throttle.restore_queues
        server.plugins.on_change = self.hide_secrets
        self.figures = MonitoringService(server, self.accounting, self.logger)
        self.figures.sources.checks.append(self._find_problems)
        self.bandwidth_meter = BandwidthMeter(config, foundation.counters, self.logger)
        self.console = Console(context(server, self.bandwidth_meter), self.logger)
        self.nsctl = NsctlServer(
            config,
            foundation.counters,
            server.plugins,
            self.logger,
            awake=awake,
            share=self.services.operator_scheduler,
            supervisor=supervisor,
        )
        self.dynamic_authorization = DynamicAuthorization(
            config,
            foundation.counters,
            DynamicAuthority(self.services, self.lns.sessions),
            self.logger,
            share=self.services.operator_scheduler,
            supervisor=supervisor,
        )
        self.port_errors: PortErrors | None = None
        self._firewall: Firewall | None = None  # until every port is open: the rules may be another process's
        self._served = False  # whether the start succeeded
        self._kept = False  # whether the next process finds in the kernel what this one has there
        self._stop_deadline = 0.0  # monotonic
        self._started = ExitStack()
        for name, stop in (
            ("state", self.store.close),
            ("accounting", self._stop_accounting),
            ("figures", self.figures.stop),
            ("usage file", self._stop_usage_files),
            ("gardens", lambda: self.services.gardens.stop(keep=self._kept)),
            ("firewall", self._stop_firewall),
            ("data path", self._stop_plane),
            ("throttling", self.services.throttle.stop),
            ("journal", self._stop_journal),
            ("plugins", server.plugins.stop),
            ("goodbye", self._stop_sessions),
            ("nsctl", self.nsctl.stop),
            ("dynamic authorization", self.dynamic_authorization.stop),
            ("console", self.console.stop),
        ):
            self._started.callback(foundation.steps.take, name, stop)

    def _spool_directory(self) -> Path:
        """Return the directory in which accounting records wait for a RADIUS server."""
        return Path(self.config.spool_dir or process.state_directory() / "spool")

    def hide_secrets(self) -> None:
        """Have the log hide the secrets of the configuration and of plugins."""
        self._foundation.log.hide((*self.config.secrets(), *self.server.plugins.settings.secrets))

    def _find_problems(self) -> Iterator[Finding]:
        """Yield the problems of the process itself."""
        if self._foundation.spare.short:
            text = "no descriptor is free: connections and files are refused"
            yield Finding("no_descriptor", "", text, "raise LimitNOFILE, or find who holds connections to the server")

    # Start

    def open(self) -> None:
        """Open all that can refuse a start: sockets, devices, files of another process. Raises ConfigError.

        Nothing of the saved state has been read yet, so a start that fails here leaves it to the next start unchanged.
        """
        self.accounting.open()
        self.plane.start()
        self.console.open()
        self.nsctl.apply_config()
        self.dynamic_authorization.apply_config()
        if self.config.pid_file:  # last: a second start by mistake must not replace the file of the running server
            process.write_pid_file(Path(self.config.pid_file))

    def start(self) -> Resumed:
        """Restore the saved state and start every component. Return what was restored."""
        saved = self._load_state()
        self._start_policies(saved)
        resumed = self._restore(saved)
        self._start_throttling()
        self._start_accounting(resumed)
        self._start_serving(saved, resumed)
        return resumed

    def _load_state(self) -> Replay:
        """Return what an earlier process saved.

        A directory that other users may write to costs the saved state, not the service.
        """
        store = self.store
        if not self.config.save_state and not store.directory.is_dir():
            return Replay()  # and the directory is not created
        try:
            store.open()
        except ConfigError as error:
            self.logger.error("state_not_kept", why=str(error))
            return Replay()
        if not self.config.save_state:
            store.erase()  # it is out of date and must never be restored
            return Replay()
        return store.load(self.config.state_max_age)

    def _start_policies(self, saved: Replay) -> None:
        """Adopt the rules in the kernel, create the gardens that saved sessions are in, load plugins."""
        self._firewall = firewall = Firewall(self.logger, instance=instance_of(self.config.tundevicename))
        # Where the kernel has carried sessions meanwhile, those in a garden must not leave it now.
        cleanup.begin(firewall, self.logger, keep=self.plane.carrying)
        gardens = {record.policy.garden for record in saved.sessions.values()} - {""}
        self.services.gardens.start(lambda: GardenRules(firewall, IpSets()), gardens)
        self.port_errors = PortErrors(self.config, firewall, self.plane.lacs.port, self.logger)
        self.server.plugins.start()

    def _restore(self, saved: Replay) -> Resumed:
        """Restore tunnels and sessions, with what the kernel needs for them. Return what was restored."""
        services = self.services
        self.plane.serve(self._pool.prefixes())
        resumed = resume(self.lns, self.server.journal, saved)
        self.plane.resume()
        services.snoop.resumed(resumed.sessions)
        services.gardens.reconcile()
        return resumed

    def _start_throttling(self) -> None:
        """Start shaping. A kernel without netfilter does not prevent the start: all else works without shaping."""
        assert self._firewall is not None
        try:
            netlink = Netlink()
            device = netlink.link_index(self.config.tundevicename)
            shaper = KernelShaper(netlink, device, IpSets(), self._firewall, self.logger, self._foundation.supervisor)
        except (OSError, NetlinkError) as error:
            self.logger.error("throttling_impaired", why=str(error))
            return
        self.services.throttle.start(shaper)

    def _start_accounting(self, resumed: Resumed) -> None:
        """Account for restored sessions, and stop those of an earlier process that were not restored."""
        accounting, sessions = self.accounting, resumed.sessions
        accounted = set(accounting.open_sessions())
        for session in sessions:
            if session.acct_session_id not in accounted and not session.policy.garden:  # accounting was off
                session.account_start()
        accounting.recover(resumed.accounted)
        if not sessions:  # else the RADIUS server would close the records of the restored ones (RFC 2866 4.1)
            accounting.on()

    def _start_serving(self, saved: Replay, resumed: Resumed) -> None:
        """Start the loops: timers, usage files, figures, the journal, consoles."""
        supervisor = self._foundation.supervisor
        self.lns.start()
        self.services.usage_files.start()
        self.figures.start()
        self.server.keep_state(self.store)
        self.server.journal.start(*resumed.gone)
        if not saved.empty:
            self.logger.warning(
                "state_resumed",
                tunnels=resumed.tunnels,
                sessions=len(resumed.sessions),
                calls_ended=resumed.calls,
                away=round(elapsed(saved.last, moment()), 1),
                clean=saved.clean,
            )
        supervisor.spawn("bandwidth meter", self.bandwidth_meter.run)
        watchdog = Watchdog(self._foundation.service_manager, self._foundation.spare, supervisor)
        supervisor.spawn("keeper", watchdog.run)
        self.console.start()
        self.nsctl.start()
        self.dynamic_authorization.start()
        assert self.port_errors is not None
        self.port_errors.apply_config()

    # Stop

    def stop(self, *, served: bool) -> None:
        """Stop every component, even if another one fails to stop, and leave nothing in the kernel.

        `served` is False after a start that failed.
        """
        self._served = served
        self._stop_deadline = monotonic() + self.config.shutdown_timeout
        self._started.close()

    def _stop_sessions(self) -> None:
        """Disconnect every subscriber, unless the next process goes on with the sessions."""
        if not self._served:  # restored sessions belong to the next start: nothing is sent
            self.services.handed_over = True
            self.server.journal.halt()
        if not self.services.handed_over:
            self.lns.shutdown(self.config.shutdown_timeout / 2)

    def _stop_journal(self) -> None:
        """Remove the saved state if every subscriber was disconnected."""
        if not self.services.handed_over:
            self.server.journal.erase()

    def _stop_plane(self) -> None:
        """Stop the data path. What it has in the kernel stays for the next process if that goes on with the sessions.

        After a start that failed, only what was there before stays.
        """
        self._kept = self.services.handed_over and (self._served or self.plane.adopted)
        self.plane.stop(keep=self._kept)

    def _stop_firewall(self) -> None:
        """Remove our rules, if this process has adopted them, unless they stay for the next one."""
        if self._firewall is not None and not self._kept:
            cleanup.remove_rules(self._firewall, self.logger)

    def _stop_usage_files(self) -> None:
        """Write the last usage file, unless the next process goes on counting."""
        if not self.services.handed_over:
            self.services.usage_files.stop()

    def _stop_accounting(self) -> None:
        """Deliver accounting records until the deadline; the rest stays on disk."""
        # A start that failed never served: the sessions that an Accounting-Off would end may be another process's.
        goes_off = self._served and not self.services.handed_over
        if goes_off:
            self._foundation.steps.take("accounting off", self.accounting.off)
        # The next process delivers what this one does not. Without a server there is nothing to wait for.
        waits = goes_off and bool(self.accounting.settings.accounting_servers)
        self.accounting.close(max(1.0, self._stop_deadline - monotonic()) if waits else HANDOVER_TIMEOUT)
