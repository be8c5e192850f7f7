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
from collections.abc import Iterator
from contextlib import suppress
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
from l2tpns.console.context import Office
from l2tpns.console.server import Console
from l2tpns.dataplane.userspace import UserPlane
from l2tpns.errors import ConfigError, RepairError, ReportError, WaitError
from l2tpns.lns import Lns
from l2tpns.monitoring.bandwidth import bandwidth_line, sample
from l2tpns.monitoring.problems import Finding
from l2tpns.monitoring.service import MonitoringService
from l2tpns.nsctl.server import NsctlServer
from l2tpns.policy import filters
from l2tpns.radius.accounting import Accounting
from l2tpns.radius.auth import RadiusBackend
from l2tpns.radius.secrets_file import SecretsBackend
from l2tpns.radius.types import Backend, RadiusSettings
from l2tpns.runtime import process
from l2tpns.runtime.awake import AwakeClock
from l2tpns.runtime.clock import elapsed, moment
from l2tpns.runtime.counters import PRIVATE, Counters
from l2tpns.runtime.faults import contain_strays, describe, words
from l2tpns.runtime.keeper import Keeper, Steps
from l2tpns.runtime.log import Log
from l2tpns.runtime.log_sinks import DAEMON_FACILITY, SYSLOG_SOCKET
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.state.records import Replay
from l2tpns.state.restore import resume
from l2tpns.state.store import StateStore
from l2tpns.subscriber.pool import Layout, Pool, read_layout
from l2tpns.system import cleanup, privileges
from l2tpns.system.firewall import LOCK, Firewall
from l2tpns.system.garden_rules import Cage
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
        self.log = Log(self.config.log_file, self.config.debug, detached=options.detach)
        self.log.open_audit(self.config.audit_file)
        self.logger = self.log.get()
        self.configurator = Configurator(options, reading, self.log, self.apply, self.read_pool, self.take_pool)
        self.counters = Counters()
        self.awake = AwakeClock()
        self.signals: Queue[int | ConfigError | ReportError] = Queue()  # or why the server cannot go on
        self.greenlets: WeakSet[Any] = WeakSet()  # all that were begun; the collector knows none of the frozen ones
        gevent.Greenlet.add_spawn_callback(self.greenlets.add)
        contain_strays(gevent.get_hub(), self.logger)
        self.manager = process.ServiceManager()
        self.spare = process.Spare()
        self.supervisor = Supervisor(self.logger, self.part_lost)
        self.lns: Lns | None = None
        self.plane: UserPlane | None = None
        self.figures: MonitoringService | None = None
        self.accounting: Accounting | None = None
        self.started = monotonic()
        self.ready = False  # the start went well
        self.farewell = False  # everybody is to be disconnected, no state is to be left
        self.bandwidth = ""
        self.console: Console | None = None
        self.nsctl: NsctlServer | None = None
        self.firewall: Firewall | None = None  # until every port is ours: the rules may be another process's

    def run(self) -> int:
        """Build, serve, take down; the exit status. Raises ConfigError when there is nothing to take down yet."""
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
        facts = {} if isinstance(error, ConfigError) else {"traceback": words(error)}
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
        own = process.state_directory()
        directories = {
            Path(config.state_dir or own): config.save_state,
            Path(config.spool_dir or own): bool(config.radius_accounting),
        }
        files = (config.log_file.removeprefix("file:"), config.audit_file, config.pid_file)
        privileges.hand_over(
            identity,
            [directory for directory, used in directories.items() if used or directory.is_dir()],
            [Path(name) for name in files if name.startswith("/")],
        )
        privileges.share_lock(identity, Path(LOCK))
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
        self.store: StateStore | None = None

    def read_pool(self, config: Config) -> Layout:
        """The addresses to give out; none without a file (RADIUS may name them all). Raises ConfigError."""
        own = {config.tun_address, *config.listen_addresses}
        if config.main_address is not None:
            own.add(config.main_address)
        return read_layout(self.files.pool, own)

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
        """Open what is outside: spool, sockets, tun device, routes. Raises ConfigError."""
        config = self.config
        self.logger.info("starting", version=__version__, config=str(self.options.config), pid=os.getpid())
        self.configurator.doubts()
        if not process.kernel_forwards():
            self.logger.warning(
                "ip_forward_off", why=f"{process.IP_FORWARD} is 0: subscribers reach nobody but this machine"
            )
        self.accounting = accounting = Accounting(
            self.radius_settings,
            self.spool_directory(),
            self.logger,
            awake=self.awake,
            supervisor=self.supervisor,
        )
        self.lns = lns = Lns(
            config,
            self.counters,
            self.logger,
            self.pool,
            self.backend,
            accounting,
            awake=self.awake,
            supervisor=self.supervisor,
        )
        self.plane = UserPlane(
            config,
            self.counters,
            self.logger,
            lns.on_control,
            on_lost=lambda: self.signals.put(WaitError(f"{config.tundevicename} was deleted and cannot be made again")),
            on_surroundings=lns.guard.follow,
            supervisor=self.supervisor,
        )
        lns.plane = self.plane
        self.plane.on_device = lns.throttle.move
        lns.deaf = True  # to what comes before the saved state is taken up: a new tunnel might get an old one's id
        self.console = Console(self.office(), self.logger)
        self.nsctl = NsctlServer(
            config,
            self.counters,
            lns.plugins,
            self.logger,
            awake=self.awake,
            share=lns.share,
            supervisor=self.supervisor,
        )
        self.open_ports()
        gc.disable()  # much is made now, and nothing of it is garbage
        saved = self.load_state()
        self.firewall = Firewall(self.logger)
        cleanup.begin(self.firewall, self.logger)
        firewall = self.firewall
        lns.gardens.start(lambda: Cage(firewall, IpSets()), saved.sessions.values())
        lns.plugins.on_change = self.hide_secrets
        lns.plugins.start()
        self.plane.serve(self.pool.prefixes())
        resumed = resume(lns, saved)
        lns.deaf = False
        lns.snoop.resumed(resumed.sessions)
        lns.gardens.settle()
        self.start_throttling()
        accounted = set(accounting.open_sessions())
        for session in resumed.sessions:
            if session.acct_session_id not in accounted and not session.policy.garden:  # accounting was off
                accounting.start(session.accounted("start"))
        accounting.recover(resumed.accounted)
        if not resumed.sessions:  # else the RADIUS server would take their records for closed (RFC 2866 4.1)
            accounting.on()
        lns.start()
        lns.usage_files.start()
        self.figures = MonitoringService(lns, accounting, self.logger)
        self.figures.sources.checks.append(self.find_problems)
        self.figures.start()
        assert self.store is not None
        lns.journal.start(self.store, *resumed.gone)
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
        self.supervisor.spawn("keeper", Keeper(self.manager, self.spare, self.supervisor).run)
        self.console.start()
        self.nsctl.start()
        if not resumed.sessions:
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

    def open_ports(self) -> None:
        """All that can refuse a start: sockets, devices, files that another program may have. Raises ConfigError.

        Nothing was read of the saved state yet, so a start that fails here leaves it to the next one as it is.
        """
        assert self.console is not None and self.nsctl is not None
        assert self.accounting is not None and self.plane is not None
        self.accounting.open()
        self.plane.start()
        self.console.open()
        self.nsctl.apply_config()
        if self.config.pid_file:  # the last: a second start by mistake must not take the file of the one that runs
            process.write_pid_file(Path(self.config.pid_file))

    def start_throttling(self) -> None:
        """Without it everything else works: a kernel without netfilter is no reason not to serve."""
        assert self.firewall is not None and self.lns is not None and self.plane is not None
        try:
            netlink = Netlink()
            device = netlink.link_index(self.config.tundevicename)
            shaper = KernelShaper(netlink, device, IpSets(), self.firewall, self.logger, self.supervisor)
        except (OSError, NetlinkError) as error:
            self.logger.error("throttling_impaired", why=str(error))
            return
        self.lns.throttle.start(shaper)
        self.plane.restore_queues = self.lns.throttle.restore_queues

    def load_state(self) -> Replay:
        """What an earlier process left. A directory that is not ours alone costs the state, not the service."""
        self.store = store = StateStore(self.config.state_dir or process.state_directory() / "state", self.logger)
        if not self.config.save_state and not store.directory.is_dir():
            return Replay()  # and it is not made
        try:
            store.open()
        except ConfigError as error:
            self.logger.error("state_not_kept", why=str(error))
            return Replay()
        if not self.config.save_state:
            store.erase()  # of another life: nobody may ever take it up
            return Replay()
        return store.load(self.config.state_max_age)

    def office(self) -> Office:
        """What the console may see and do."""
        assert self.lns is not None
        return Office(
            lns=self.lns,
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
                self.logger.error("signal_failed", why=describe(error), traceback=words(error))

    def part_lost(self, part: Part) -> None:
        """A part that nobody can do without fails again and again: another process may do better."""
        self.signals.put(ReportError(f"the {part.name} cannot be kept running: {part.why}"))

    def take_leave(self, signal: str, *, save: bool) -> None:
        """Decide how to leave: with `save`, and save_state, without a word; else everybody is disconnected."""
        lns = self.lns
        assert lns is not None
        self.spare.release()
        steps = Steps(self.logger)
        steps.take("usage file", lns.usage_files.write)  # before the state is: it says how much they have told
        if save:
            steps.take("saved state", lns.leave)
        self.farewell = not lns.left
        self.logger.info("leaving", signal=signal, sessions=len(lns.sessions), state_saved=lns.left)

    def stop(self) -> None:
        """Say goodbye to everybody, or to nobody; deliver or keep the accounting records, leave no kernel state."""
        steps = Steps(self.logger)
        self.spare.release()
        self.manager.say("STOPPING=1")
        if self.console is not None:
            steps.take("console", self.console.stop)
        if self.nsctl is not None:
            steps.take("nsctl", self.nsctl.stop)
        until = monotonic() + self.config.shutdown_timeout
        if self.lns is not None:
            self.stop_serving(self.lns, steps)
        if self.figures is not None:
            steps.take("figures", self.figures.stop)
        if self.accounting is not None:
            self.stop_accounting(self.accounting, steps, until)
        if self.store is not None:
            steps.take("state", self.store.close)
        if self.radius is not None:
            steps.take("radius", self.radius.close)
        if self.config.pid_file:
            steps.take("pid file", process.remove_pid_file, Path(self.config.pid_file))
        self.logger.info("stopped", seconds=round(monotonic() - self.started, 1))
        steps.take("log", self.log.close)

    def stop_serving(self, lns: Lns, steps: Steps) -> None:
        """Sessions, plugins, the data path and what is in the kernel."""
        if not self.ready:  # whom it has taken up belongs to the next start: not a word to anybody
            lns.left = True
            steps.take("journal", lns.journal.halt)
        if not lns.left:
            steps.take("goodbye", lns.shutdown, self.config.shutdown_timeout / 2)
        steps.take("plugins", lns.plugins.stop)
        if self.farewell:
            steps.take("journal", lns.journal.erase)
        steps.take("throttling", lns.throttle.stop)
        if self.plane is not None:
            steps.take("data path", self.plane.stop)
        if self.firewall is not None:
            steps.take("firewall", cleanup.remove_rules, self.firewall, self.logger)
            steps.take("gardens", lns.gardens.stop)
        if not lns.left:
            steps.take("usage file", lns.usage_files.stop)

    def stop_accounting(self, accounting: Accounting, steps: Steps, until: float) -> None:
        """Until then what is left may be delivered; the rest waits on disk."""
        # A start that failed never served: the sessions that an Accounting-Off would end may be another process's.
        served = self.ready and self.lns is not None and not self.lns.left
        if served:
            steps.take("accounting off", accounting.off)
        # The next process delivers what this one does not: nobody is to wait for that, or where no server is named.
        waits = served and bool(self.radius_settings.accounting_servers)
        steps.take("accounting", accounting.close, max(1.0, until - monotonic()) if waits else HANDOVER)

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
        assert self.lns is not None
        try:
            with self.spare.lent():
                told = self.configurator.reload()
                return (*self.lns.plugins.follow(self.config.plugins), *told)
        finally:
            self.manager.say("READY=1")

    def take_pool(self, layout: Layout) -> None:
        """Give out these addresses from now on; those in use stay with whoever has them."""
        assert self.lns is not None and self.plane is not None
        self.lns.change_pool(layout)
        self.lns.guard.refresh()
        self.plane.serve(self.pool.prefixes())

    def apply(self, radius: bool) -> None:
        """Hand on what the configuration says. ConfigError: nobody could log in, or nsctl has no port."""
        config = self.config
        self.log.level = config.debug
        self.hide_secrets()
        assert self.lns is not None and self.accounting is not None
        self.lns.compare_names()
        if self.nsctl is not None:
            self.nsctl.apply_config()
        self.lns.guard.refresh()
        if not radius:
            return
        self.lns.plugins.check(config.plugin_settings, config.plugins)
        self.radius_settings = RadiusSettings.from_config(config)
        self.accounting.configure(self.radius_settings)
        filters.rebind(self.lns)
        self.lns.backend = self.choose_backend()

    def hide_secrets(self) -> None:
        """The log shows none of them, nor those of plugins."""
        assert self.lns is not None
        self.log.hide((*self.config.secrets(), *self.lns.plugins.secrets))

    def report(self) -> None:
        """USR1: what there is, in one line of the log, which anybody at a console may read."""
        assert self.lns is not None
        figures = {name: value for name, _, value in self.counters.items() if value and name not in PRIVATE}
        with self.spare.lent():
            descriptors, resident = process.descriptors(), process.resident_kib()
        self.logger.critical(
            "status",
            tunnels=len(self.lns.tunnels),
            sessions=len(self.lns.sessions),
            online=len(self.lns.by_address),
            half_open=self.lns.half_open.total(),
            starting=self.lns.starting.total(),
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
