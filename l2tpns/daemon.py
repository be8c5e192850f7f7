"""The daemon: builds the parts in order, obeys signals, takes everything down again.

Signals (manual: Signals) are only queued by their handlers and served by the main greenlet. HUP: read the
configuration again, reopen the log. QUIT: disconnect everybody and leave. TERM and INT: with save_state leave without a
word, to be back with every session; else as QUIT. USR1: a line with all counters into the log.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import WeakSet

import gevent
from gevent.exceptions import LoopExit
from gevent.queue import Queue

from l2tpns import __version__
from l2tpns.config import file as configfile
from l2tpns.config.live import Configurator, Options, read
from l2tpns.config.settings import Config
from l2tpns.console.context import ConsoleContext
from l2tpns.console.server import Console
from l2tpns.dataplane.userspace import UserPlane
from l2tpns.errors import ConfigError, RepairError, ReportError, WaitError
from l2tpns.monitoring.bandwidth import bandwidth_line, sample
from l2tpns.monitoring.problems import Finding
from l2tpns.monitoring.service import MonitoringService
from l2tpns.nsctl.server import NsctlServer
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.secrets_file import SecretsBackend
from l2tpns.radius.settings import RadiusSettings
from l2tpns.radius.types import Backend
from l2tpns.runtime import files, process
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.clock import elapsed, moment
from l2tpns.runtime.counters import PRIVATE, Counters
from l2tpns.runtime.exceptions import contain_strays, describe, format_traceback
from l2tpns.runtime.log import Log
from l2tpns.runtime.log_sinks import DAEMON_FACILITY, SYSLOG_SOCKET
from l2tpns.runtime.shutdown_steps import ShutdownSteps
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.runtime.watchdog import Watchdog
from l2tpns.server import Server
from l2tpns.state.records import Replay
from l2tpns.state.restore import Resumed, resume
from l2tpns.state.store import StateStore
from l2tpns.subscriber import usage_files
from l2tpns.subscriber.pool import Layout, Pool, read_layout
from l2tpns.system import cleanup, preload, privileges
from l2tpns.system.firewall import Firewall, keep_table_list, lock_file
from l2tpns.system.garden_rules import GardenRules
from l2tpns.system.ipset import IpSets
from l2tpns.system.netlink_socket import NetlinkError
from l2tpns.system.rtnetlink import Netlink
from l2tpns.system.shaping import KernelShaper

SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Reference counts free what ends; the collector is for our mistakes, and each time walks what has come since the last:
# 2 ms after 120 new sessions, 10 ms after 600, and everything only after a quarter of a million.
GC_THRESHOLDS = (5_000, 5, 400)
MACHINE = (OSError, MemoryError)  # what the machine refuses where the code has no words for it
HANDOVER = 0.5  # seconds to deliver accounting records when the sessions live on


class Daemon:
    """One process: a configuration and everything that follows from it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.files = configfile.find_files(options.config)
        reading = read(options)
        self.config = reading.config
        with suppress(ConfigError):  # give_up_root reports it
            identity = privileges.find_identity(self.config.setuid)
            if identity is not None:
                files.accept_owner(identity.uid, identity.gid)
        self.log = Log(self.config.log_file, self.config.debug, detached=options.detach)
        self.log.open_audit(self.config.audit_file)
        self.logger = self.log.get()
        self.configurator = Configurator(
            options, reading, self.log, self.apply, self.prepare_pool, usage_files.unusable
        )
        self.counters = Counters()
        self.awake = AwakeClock()
        self.signals: Queue[int | ConfigError | ReportError] = Queue()  # or why the server cannot go on
        self.greenlets: WeakSet[Any] = WeakSet()  # all that were begun; the collector knows none of the frozen ones
        gevent.Greenlet.add_spawn_callback(self.greenlets.add)
        contain_strays(gevent.get_hub(), self.logger)
        self.manager = process.ServiceManager()
        self.spare = process.Spare()
        self.supervisor = Supervisor(self.logger, self.part_lost)
        self.started = monotonic()
        self.ready = False  # the start went well
        self.disconnect_all = False  # every subscriber is to be disconnected, no state is to be left
        self.bandwidth = ""
        self.steps = ShutdownSteps(self.logger)
        self.parts = ExitStack()  # how what was built is stopped, the last part first
        self.firewall: Firewall | None = None  # until every port is ours: the rules may be another process's

    def run(self) -> int:
        """Build, serve, stop. Return the exit status. Raises ConfigError when there is nothing to stop yet."""
        self.build()
        starter = self.detach() if self.options.detach else process.Starter()
        try:
            for signum in SIGNALS:  # what comes before there is a server to obey it waits
                gevent.signal_handler(signum, self.signals.put, signum)
            process.raise_descriptor_limit()
            self.give_up_root()
            self.start()
            starter.release(0)
            status = self.serve()
        except BaseException as error:
            status = self.fail(error)
        self.stop()
        starter.release(status)
        return status

    def fail(self, error: BaseException) -> int:
        """Say why there is no server, or none any more; the exit status (errors.py)."""
        status = getattr(error, "status", RepairError.status if isinstance(error, MACHINE) else ReportError.status)
        why = str(error) if isinstance(error, ConfigError) else describe(error)
        facts = {} if isinstance(error, ConfigError) else {"traceback": format_traceback(error)}
        self.logger.critical("server_failed" if self.ready else "start_failed", why=why, status=status, **facts)
        if self.ready:
            self.take_leave("none", save=True)
            return int(status)
        with suppress(OSError, ValueError):
            print(why, file=sys.stderr)
        return int(status)

    def detach(self) -> process.Starter:
        """Leave the terminal. It is told where the log is, if the configuration does not say so."""
        if not self.config.log_file:
            nobody = "" if os.path.exists(SYSLOG_SOCKET) else f"; nobody listens at {SYSLOG_SOCKET} yet"
            print(f"no log_file is set: the log goes to syslog:{DAEMON_FACILITY}{nobody}", file=sys.stderr)
        return process.detach()

    def give_up_root(self) -> None:
        """Become the user of `setuid`, if it names one. Raises ConfigError when that user could not serve."""
        config = self.config
        identity = privileges.find_identity(config.setuid)
        if identity is None or identity.uid == os.geteuid():
            return
        written = (config.log_file.removeprefix("file:"), config.audit_file, config.pid_file)
        privileges.hand_over(  # also what is not in use now: save_state and radius_accounting may be set at any time
            identity,
            process.state_directory(),
            {"": process.runtime_directory(), **({"spool_dir": Path(config.spool_dir)} if config.spool_dir else {})},
            [Path(name) for name in written if name.startswith("/")],
            Path(config.state_dir) if config.state_dir else None,
        )
        privileges.share_lock(identity, Path(lock_file()))
        keep_table_list()
        preload.import_late_modules()
        if config.pid_file:
            process.reserve_pid_file(Path(config.pid_file), identity.uid, identity.gid)
        privileges.become(identity)
        closed = privileges.unreadable(self.files.all())
        if closed:
            raise ConfigError(
                f"setuid: {identity.name} may not read {', '.join(map(str, closed))}, and could not reload the "
                f"configuration: chgrp {identity.gid} it and its directory, with modes 0640 and 0750"
            )
        self.logger.info("root_given_up", user=identity.name, kept=sorted(privileges.KEPT))
        directory = config.accounting_dir
        if directory and not os.access(directory, os.W_OK | os.X_OK, effective_ids=True):
            self.logger.warning("directory_not_writable", setting="accounting_dir", path=directory, user=identity.name)

    def build(self) -> None:
        """Everything that can be refused without touching the network."""
        config = self.config
        self.log.hide(config.secrets())
        self.pool = Pool(self.read_pool(config))
        self.radius_settings = RadiusSettings.from_config(config)
        self.radius: RadiusBackend | None = None
        self.secrets: SecretsBackend | None = None
        self.backend = self.choose_backend()

    def read_pool(self, config: Config) -> Layout:
        """The addresses to give out; none without a file (RADIUS may name them all). Raises ConfigError."""
        own = {config.tun_address, *config.listen_addresses}
        if config.main_address is not None:
            own.add(config.main_address)
        return read_layout(self.files.pool, own)

    def prepare_pool(self, config: Config) -> Callable[[], None]:
        """Read the addresses of a configuration. Return a function that adopts them. Raises ConfigError."""
        return partial(self.take_pool, self.read_pool(config))

    def spool_directory(self) -> Path:
        """Return where accounting records wait for a server."""
        return Path(self.config.spool_dir or process.state_directory() / "spool")

    def choose_backend(self) -> Backend:
        """RADIUS where a server is named, else the secrets file beside the configuration."""
        if self.radius_settings.servers:
            if self.radius is None:
                self.radius = RadiusBackend(
                    self.radius_settings, self.logger, awake=self.awake, supervisor=self.supervisor
                )
            else:
                self.radius.configure(self.radius_settings)
            return self.radius
        if self.secrets is None:
            self.secrets = SecretsBackend(self.files.secrets, self.config.hostname, self.logger)
        else:
            self.secrets.reload()
        return self.secrets

    def start(self) -> None:
        """Start every part, in order. Raises ConfigError; `stop` then stops those that were built."""
        config = self.config
        self.logger.info("starting", version=__version__, config=str(self.options.config), pid=os.getpid())
        self.configurator.config_warnings()
        if not process.kernel_forwards():
            self.logger.warning(
                "ip_forward_off", why=f"{process.IP_FORWARD} is 0: subscribers reach nobody but this machine"
            )
        self.assemble()
        self.open_ports()
        gc.disable()  # much is made now, and nothing of it is garbage
        self.saved = self.load_state()
        self.start_policies()
        self.resumed = self.restore()
        self.start_throttling()
        self.start_accounting()
        self.start_serving()
        if not self.resumed.sessions:
            gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        self.spare.fill()
        self.ready = True
        self.manager.say(f"READY=1\nMAINPID={os.getpid()}")
        self.logger.info(
            "ready", hostname=config.hostname, pool=self.pool.size, took=round(monotonic() - self.started, 3)
        )

    def assemble(self) -> None:
        """Build all parts, each given those it uses, and register how they stop. Opens nothing.

        They stop in the reverse order of their registration: consoles first, then sessions, plugins, the data path,
        what is in the kernel, and at last accounting, which has to deliver what the others have written.
        """
        config, awake, supervisor = self.config, self.awake, self.supervisor
        self.store = StateStore(config.state_dir or process.state_directory() / "state", self.logger)
        self.accounting = Accounting(
            self.radius_settings, self.spool_directory(), self.logger, awake=awake, supervisor=supervisor
        )
        self.plane = UserPlane(
            config,
            self.counters,
            self.logger,
            lambda datagram, peer, endpoint: self.lns.on_control(datagram, peer, endpoint),
            on_lost=lambda: self.signals.put(WaitError(f"{config.tundevicename} was deleted and cannot be made again")),
            on_surroundings=lambda surroundings: self.services.guard.follow(surroundings),
            supervisor=supervisor,
        )
        self.server = server = Server(
            config,
            self.counters,
            self.logger,
            self.pool,
            self.backend,
            self.accounting,
            self.plane,
            awake=awake,
            supervisor=supervisor,
        )
        self.lns, self.services = server.lns, server.services
        self.lns.paused = True  # until the saved state is restored: a new tunnel might get an old one's id
        self.plane.on_device = self.services.throttle.move
        self.plane.restore_queues = self.services.throttle.restore_queues
        server.plugins.on_change = self.hide_secrets
        self.figures = MonitoringService(server, self.accounting, self.logger)
        self.figures.sources.checks.append(self.find_problems)
        self.console = Console(self.context(), self.logger)
        self.nsctl = NsctlServer(
            config,
            self.counters,
            server.plugins,
            self.logger,
            awake=awake,
            share=self.services.operator_scheduler,
            supervisor=supervisor,
        )
        for name, stop in (
            ("radius", self.stop_radius),
            ("state", self.store.close),
            ("accounting", self.stop_accounting),
            ("figures", self.figures.stop),
            ("usage file", self.stop_usage_files),
            ("gardens", self.services.gardens.stop),
            ("firewall", self.stop_firewall),
            ("data path", self.plane.stop),
            ("throttling", self.services.throttle.stop),
            ("journal", self.stop_journal),
            ("plugins", server.plugins.stop),
            ("goodbye", self.stop_sessions),
            ("nsctl", self.nsctl.stop),
            ("console", self.console.stop),
        ):
            self.parts.callback(self.steps.take, name, stop)

    def open_ports(self) -> None:
        """Open all that can refuse a start: sockets, devices, files that another program may have. Raises ConfigError.

        Nothing was read of the saved state yet, so a start that fails here leaves it to the next one as it is.
        """
        self.accounting.open()
        self.plane.start()
        self.console.open()
        self.nsctl.apply_config()
        if self.config.pid_file:  # the last: a second start by mistake must not take the file of the one that runs
            process.write_pid_file(Path(self.config.pid_file))

    def load_state(self) -> Replay:
        """Return what an earlier process left. A directory that is not ours alone costs the state, not the service."""
        store = self.store
        if not self.config.save_state and not store.directory.is_dir():
            return Replay()  # and it is not made
        try:
            store.open()
        except ConfigError as error:
            self.logger.error("state_not_kept", why=str(error))
            return Replay()
        if not self.config.save_state:
            store.erase()  # of another life: it must never be restored
            return Replay()
        return store.load(self.config.state_max_age)

    def start_policies(self) -> None:
        """Take over the kernel's rules, build the gardens that saved sessions are in, load plugins."""
        self.firewall = firewall = Firewall(self.logger)
        cleanup.begin(firewall, self.logger)
        gardens = {record.policy.garden for record in self.saved.sessions.values()} - {""}
        self.services.gardens.start(lambda: GardenRules(firewall, IpSets()), gardens)
        self.server.plugins.start()

    def restore(self) -> Resumed:
        """Restore tunnels and sessions, with what is in the kernel for them. Return what was restored."""
        services = self.services
        self.plane.serve(self.pool.prefixes())
        resumed = resume(self.lns, self.server.journal, self.saved)
        self.lns.paused = False
        services.snoop.resumed(resumed.sessions)
        services.gardens.settle()
        return resumed

    def start_throttling(self) -> None:
        """Begin to shape. Without it everything else works: a kernel without netfilter is no reason not to serve."""
        assert self.firewall is not None
        try:
            netlink = Netlink()
            device = netlink.link_index(self.config.tundevicename)
            shaper = KernelShaper(netlink, device, IpSets(), self.firewall, self.logger, self.supervisor)
        except (OSError, NetlinkError) as error:
            self.logger.error("throttling_impaired", why=str(error))
            return
        self.services.throttle.start(shaper)

    def start_accounting(self) -> None:
        """Account for restored sessions; stop those of an earlier process that were not restored."""
        accounting, sessions = self.accounting, self.resumed.sessions
        accounted = set(accounting.open_sessions())
        for session in sessions:
            if session.acct_session_id not in accounted and not session.policy.garden:  # accounting was off
                session.account_start()
        accounting.recover(self.resumed.accounted)
        if not sessions:  # else the RADIUS server would take their records for closed (RFC 2866 4.1)
            accounting.on()

    def start_serving(self) -> None:
        """Start the loops: timers, usage files, figures, the journal, consoles."""
        saved, resumed = self.saved, self.resumed
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
        self.supervisor.spawn("bandwidth meter", self.watch_speed)
        self.supervisor.spawn("keeper", Watchdog(self.manager, self.spare, self.supervisor).run)
        self.console.start()
        self.nsctl.start()

    def context(self) -> ConsoleContext:
        """Return what the console may see and do."""
        return ConsoleContext(
            server=self.server,
            log=self.log,
            files=self.files,
            started=self.started,
            intended=self.configurator.intended,
            assign=self.configurator.assign,
            reload=self.take_up_file,
            leave=lambda: self.signals.put(signal.SIGTERM),
            bandwidth=lambda: self.bandwidth,
        )

    def serve(self) -> int:
        """Until a signal says leave, or a part cannot be kept running; the exit status."""
        while True:
            try:
                wanted = self.signals.get()
                if isinstance(wanted, Exception):
                    return self.fail(wanted)
                if wanted not in (signal.SIGHUP, signal.SIGUSR1):
                    self.take_leave(signal.Signals(wanted).name, save=wanted in (signal.SIGTERM, signal.SIGINT))
                    return 0
                self.reload() if wanted == signal.SIGHUP else self.report()
            except LoopExit:  # nothing will ever happen any more
                raise
            except BaseException as error:  # to obey a signal ends nothing; nor does what is thrown at this greenlet
                self.logger.error("signal_failed", why=describe(error), traceback=format_traceback(error))

    def part_lost(self, part: Part) -> None:
        """A part that nobody can do without fails again and again: another process may do better."""
        self.signals.put(ReportError(f"the {part.name} cannot be kept running: {part.why}"))

    def take_leave(self, signal: str, *, save: bool) -> None:
        """Decide whether the next process goes on with all sessions (`save`, save_state), or all are disconnected."""
        self.spare.release()
        self.steps.take("usage file", self.services.usage_files.write)  # before the state is: it tells what is in files
        if save:
            self.steps.take("saved state", self.server.hand_over)
        saved = self.services.handed_over
        self.disconnect_all = not saved
        self.logger.info("leaving", signal=signal, sessions=len(self.lns.sessions), state_saved=saved)

    def stop(self) -> None:
        """Stop every part that was built, and leave nothing in the kernel. Each survives the others' failure."""
        self.spare.release()
        self.manager.say("STOPPING=1")
        self.stop_before = monotonic() + self.config.shutdown_timeout
        self.parts.close()
        if self.config.pid_file:
            self.steps.take("pid file", process.remove_pid_file, Path(self.config.pid_file))
        self.logger.info("stopped", seconds=round(monotonic() - self.started, 1))
        self.steps.take("log", self.log.close)

    def stop_sessions(self) -> None:
        """Disconnect every subscriber, unless they belong to the next process."""
        if not self.ready:  # those that were restored belong to the next start: nothing is sent
            self.services.handed_over = True
            self.server.journal.halt()
        if not self.services.handed_over:
            self.lns.shutdown(self.config.shutdown_timeout / 2)

    def stop_journal(self) -> None:
        """Remove the saved state when every subscriber was disconnected."""
        if self.disconnect_all:
            self.server.journal.erase()

    def stop_firewall(self) -> None:
        """Remove our rules, once they are ours."""
        if self.firewall is not None:
            cleanup.remove_rules(self.firewall, self.logger)

    def stop_usage_files(self) -> None:
        """Write the last usage file, unless the next process goes on counting."""
        if not self.services.handed_over:
            self.services.usage_files.stop()

    def stop_accounting(self) -> None:
        """Deliver accounting records until `stop_before`; what is left then waits on disk."""
        # A start that failed never served: the sessions that an Accounting-Off would end may be another process's.
        served = self.ready and not self.services.handed_over
        if served:
            self.steps.take("accounting off", self.accounting.off)
        # The next process delivers what this one does not: there is no wait for that, or where no server is named.
        waits = served and bool(self.radius_settings.accounting_servers)
        self.accounting.close(max(1.0, self.stop_before - monotonic()) if waits else HANDOVER)

    def stop_radius(self) -> None:
        """Close the sockets of authentication, if RADIUS decides logins."""
        if self.radius is not None:
            self.radius.close()

    def find_problems(self) -> Iterator[Finding]:
        """What is wrong with the process itself."""
        if self.spare.short:
            text = "no descriptor is free: connections and files are refused"
            yield Finding("no_descriptor", "", text, "raise LimitNOFILE, or find who holds connections to the server")

    def reload(self) -> None:
        """HUP: an error leaves everything as it was."""
        try:
            self.take_up_file()
        except ConfigError as error:
            self.logger.error("reload_refused", why=str(error))
        except OSError as error:
            self.logger.error("reload_refused", why=describe(error))

    def take_up_file(self) -> tuple[str, ...]:
        """Go by the file from now on; what there is to say. ConfigError when it is refused, nothing being changed."""
        self.manager.say("RELOADING=1")
        try:
            with self.spare.lent():
                told = self.configurator.reload()
                return (*self.server.plugins.apply_config(self.config.plugins), *told)
        finally:
            self.manager.say("READY=1")

    def take_pool(self, layout: Layout) -> None:
        """Give out these addresses from now on; those in use stay with whoever has them."""
        self.services.registry.change_pool(layout)
        self.services.guard.refresh()
        self.plane.serve(self.pool.prefixes())

    def apply(self, radius: bool) -> None:
        """Hand on what the configuration says. ConfigError: nobody could log in, or nsctl has no port."""
        config = self.config
        self.log.level = config.debug
        self.hide_secrets()
        self.services.registry.compare_names()
        self.nsctl.apply_config()
        self.services.guard.refresh()
        if not radius:
            return
        self.server.plugins.check(config.plugin_settings, config.plugins)
        self.radius_settings = RadiusSettings.from_config(config)
        self.accounting.configure(self.radius_settings)
        self.server.refresh_filters()
        self.services.backend = self.choose_backend()

    def hide_secrets(self) -> None:
        """The log shows none of them, nor those of plugins."""
        self.log.hide((*self.config.secrets(), *self.server.plugins.secrets))

    def report(self) -> None:
        """USR1: what there is, in one line of the log, which anybody at a console may read."""
        figures = {name: value for name, _, value in self.counters.items() if value and name not in PRIVATE}
        with self.spare.lent():
            descriptors, resident = process.descriptors(), process.resident_kib()
        self.logger.critical(
            "status",
            tunnels=len(self.lns.tunnels),
            sessions=len(self.lns.sessions),
            online=len(self.services.registry.by_address),
            half_open=self.lns.admission.half_open.total(),
            starting=self.lns.admission.starting.total(),
            pool_used=self.pool.used,
            pool_free=self.pool.free,
            greenlets=sum(1 for greenlet in self.greenlets if not greenlet.dead),
            descriptors=descriptors,
            rss_kib=resident,
            **figures,
        )

    def watch_speed(self) -> None:
        """dump_speed: the bandwidth line, once a second."""
        before, at = sample(self.counters), monotonic()
        while True:
            gevent.sleep(1.0)
            after, now = sample(self.counters), monotonic()
            self.bandwidth = bandwidth_line(before, after, now - at)
            if self.config.dump_speed:
                self.logger.critical("bandwidth", line=self.bandwidth)
            before, at = after, now
