"""The daemon: build and start the components, serve signals, stop everything.

Signals (manual: Signals) are queued by their handlers and served by the main greenlet. HUP: read the configuration
again and reopen the log. QUIT: disconnect every subscriber and exit. TERM and INT: with save_state exit without
disconnecting any, so that the next process goes on with all sessions; without it, as QUIT. USR1: log one line with
all counters.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
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
from l2tpns.components import Components, Foundation
from l2tpns.config import file as configfile
from l2tpns.config.live import Configurator, Options, read
from l2tpns.config.settings import Config
from l2tpns.console.context import ConsoleContext
from l2tpns.dataplane.fastpath.programs import Loader
from l2tpns.errors import ConfigError, RepairError, ReportError
from l2tpns.monitoring.bandwidth import BandwidthMeter
from l2tpns.radius.backends import Backends
from l2tpns.radius.settings import RadiusSettings
from l2tpns.runtime import files, process
from l2tpns.runtime.awake_clock import AwakeClock
from l2tpns.runtime.counters import PRIVATE, Counters
from l2tpns.runtime.descriptor_store import DescriptorStore
from l2tpns.runtime.exceptions import contain_strays, describe, format_traceback
from l2tpns.runtime.log import Log
from l2tpns.runtime.log_sinks import DAEMON_FACILITY, SYSLOG_SOCKET
from l2tpns.runtime.shutdown_steps import ShutdownSteps
from l2tpns.runtime.supervisor import Part, Supervisor
from l2tpns.server import Server
from l2tpns.subscriber import usage_files
from l2tpns.subscriber.pool import Layout, read_layout
from l2tpns.subscriber.pools import Pools
from l2tpns.system import preload, privileges
from l2tpns.system.firewall import keep_table_list, lock_file
from l2tpns.system.pins import find_store

SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# Reference counts free all that ends as it should; the collector is for mistakes. Each collection walks what was
# allocated since the last: 2 ms after 120 new sessions, 10 ms after 600. All objects only after 250,000 allocations.
GC_THRESHOLDS = (5_000, 5, 400)
MACHINE = (OSError, MemoryError)  # refusals of the machine that no code has turned into an error of ours


class Daemon:
    """One process, with its configuration."""

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
        self.signals: Queue[int | ConfigError | ReportError] = Queue()  # and the reasons why the server cannot go on
        self.greenlets: WeakSet[Any] = WeakSet()  # all of them: the collector lists none of the frozen ones
        gevent.Greenlet.add_spawn_callback(self.greenlets.add)
        contain_strays(gevent.get_hub(), self.logger)
        self.service_manager = process.ServiceManager()
        self.descriptors = DescriptorStore(self.service_manager, os.environ)
        self.spare = process.Spare()
        self.fast_path_loader = Loader(find_store(), tcx=os.environ.get("L2TPNS_HOOKS") != "clsact")
        self.supervisor = Supervisor(self.logger, self.part_lost)
        self.started = monotonic()
        self.ready = False  # the start succeeded
        self.steps = ShutdownSteps(self.logger)
        self.built = ExitStack()  # stops what was built, in the reverse order

    def run(self) -> int:
        """Build, serve, stop. Return the exit status. Raises ConfigError while there is nothing to stop."""
        self.build()
        starter = self.detach() if self.options.detach else process.Starter()
        try:
            for signum in SIGNALS:  # a signal that arrives during the start stays queued
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

    # Start

    def build(self) -> None:
        """Build what can be refused without touching the network: secrets, pool, backend. Raises ConfigError."""
        config = self.config
        self.log.hide(config.secrets())
        self.pool = Pools(self.read_pool(config))
        self.radius_settings = RadiusSettings.from_config(config)
        self.backends = Backends(config, self.files.secrets, self.logger, awake=self.awake, supervisor=self.supervisor)
        self.backend = self.backends.choose(self.radius_settings)
        self.built.callback(self.steps.take, "radius", self.backends.close)

    def read_pool(self, config: Config) -> Layout:
        """Return the addresses of the pool; none without a file, since RADIUS may assign all. Raises ConfigError."""
        own = {config.tun_address, *config.listen_addresses}
        if config.main_address is not None:
            own.add(config.main_address)
        return read_layout(self.files.pool, own)

    def detach(self) -> process.Starter:
        """Detach from the terminal, after printing where the log is unless the configuration says so."""
        if not self.config.log_file:
            absent = "" if os.path.exists(SYSLOG_SOCKET) else f"; no process listens at {SYSLOG_SOCKET} yet"
            print(f"no log_file is set: the log goes to syslog:{DAEMON_FACILITY}{absent}", file=sys.stderr)
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
        if config.fast_path != "off":
            self.fast_path_loader.prepare(config.tundevicename, identity.uid, identity.gid)
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

    def start(self) -> None:
        """Start every component, in order. Raises ConfigError; `stop` then stops those that were built."""
        config = self.config
        self.logger.info("starting", version=__version__, config=str(self.options.config), pid=os.getpid())
        self.configurator.config_warnings()
        if not process.kernel_forwards():
            self.logger.warning(
                "ip_forward_off", why=f"{process.IP_FORWARD} is 0: subscribers can reach only this machine"
            )
        self.components = components = self.build_components()
        components.open()
        gc.disable()  # much is allocated now, and nothing of it is garbage
        resumed = components.start()
        if not resumed.sessions:
            gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        self.spare.fill()
        self.ready = True
        self.service_manager.notify(f"READY=1\nMAINPID={os.getpid()}")
        self.logger.info(
            "ready", hostname=config.hostname, pool=self.pool.size, took=round(monotonic() - self.started, 3)
        )

    def build_components(self) -> Components:
        """Return all components, built but not started."""
        foundation = Foundation(
            self.config,
            self.log,
            self.logger,
            self.counters,
            self.awake,
            self.supervisor,
            self.service_manager,
            self.spare,
            self.steps,
            self.fast_path_loader,
            self.descriptors,
        )
        components = Components(
            foundation, self.pool, self.backend, self.radius_settings, context=self.context, fail=self.signals.put
        )
        self.built.callback(lambda: components.stop(served=self.ready))
        return components

    def context(self, server: Server, bandwidth_meter: BandwidthMeter) -> ConsoleContext:
        """Return what the consoles may use."""
        return ConsoleContext(
            server=server,
            log=self.log,
            files=self.files,
            started=self.started,
            intended=self.configurator.intended,
            assign=self.configurator.assign,
            reload=self.reload_file,
            leave=lambda: self.signals.put(signal.SIGTERM),
            bandwidth=lambda: bandwidth_meter.line,
            lag=lambda: self.components.figures.sources.lag.recent(),
        )

    # Serve

    def serve(self) -> int:
        """Serve signals until one ends the server, or a part cannot be kept running. Return the exit status."""
        while True:
            try:
                wanted = self.signals.get()
                if isinstance(wanted, Exception):
                    return self.fail(wanted)
                if wanted not in (signal.SIGHUP, signal.SIGUSR1):
                    self.begin_shutdown(signal.Signals(wanted).name, save=wanted in (signal.SIGTERM, signal.SIGINT))
                    return 0
                self.reload() if wanted == signal.SIGHUP else self.log_status()
            except LoopExit:  # no event can ever wake this process again
                raise
            except BaseException as error:  # neither a failed signal nor an exception thrown in here ends the server
                self.logger.error("signal_failed", why=describe(error), traceback=format_traceback(error))

    def part_lost(self, part: Part) -> None:
        """End this process: an essential part keeps failing, and a new process may succeed."""
        self.signals.put(ReportError(f"the {part.name} cannot be kept running: {part.why}"))

    def log_status(self) -> None:
        """Serve USR1: log the counters in one line. Any operator at a console may read it."""
        components = self.components
        admission = components.lns.admission
        figures = {name: value for name, _, value in self.counters.items() if value and name not in PRIVATE}
        with self.spare.lent():
            descriptors, resident = process.descriptors(), process.resident_kib()
        self.logger.critical(
            "status",
            tunnels=len(components.lns.tunnels),
            sessions=len(components.lns.sessions),
            online=len(components.services.registry.by_address),
            half_open=admission.half_open.total(),
            starting=admission.starting.total(),
            pool_used=self.pool.used,
            pool_free=self.pool.free,
            greenlets=sum(1 for greenlet in self.greenlets if not greenlet.dead),
            descriptors=descriptors,
            rss_kib=resident,
            **figures,
        )

    # A changed configuration

    def reload(self) -> None:
        """Serve HUP: read the configuration again. An error changes nothing and is logged."""
        try:
            self.reload_file()
        except ConfigError as error:
            self.logger.error("reload_refused", why=str(error))
        except OSError as error:
            self.logger.error("reload_refused", why=describe(error))

    def reload_file(self) -> tuple[str, ...]:
        """Apply the file as it is now. Return messages. Raises ConfigError if it is refused; then nothing changes."""
        self.service_manager.notify("RELOADING=1")
        try:
            with self.spare.lent():
                reported = self.configurator.reload()
                return (*self.components.server.plugins.apply_config(self.config.plugins), *reported)
        finally:
            self.service_manager.notify("READY=1")

    def prepare_pool(self, config: Config) -> Callable[[], None]:
        """Read the addresses of a configuration. Return a function that adopts them. Raises ConfigError."""
        return partial(self.change_pool, self.read_pool(config))

    def change_pool(self, layout: Layout) -> None:
        """Assign these addresses from now on. Sessions keep the addresses that they have."""
        services = self.components.services
        services.registry.change_pool(layout)
        services.guard.refresh()
        self.components.plane.serve(self.pool.prefixes())

    def apply(self, radius: bool) -> None:
        """Pass the configuration on to the components; with `radius` also to RADIUS, plugins and filters.

        Raises ConfigError when no subscriber could log in, or nsctl has no port.
        """
        config, components = self.config, self.components
        services, server = components.services, components.server
        self.log.level = config.debug
        components.hide_secrets()
        services.registry.compare_names()
        components.nsctl.apply_config()
        components.dynamic_authorization.apply_config()
        components.plane.apply_config()
        if components.port_errors is not None:
            components.port_errors.apply_config()
        services.guard.refresh()
        if not radius:
            return
        server.plugins.settings.check(config.plugin_settings, config.plugins)
        self.radius_settings = RadiusSettings.from_config(config)
        components.accounting.configure(self.radius_settings)
        server.refresh_filters()
        services.backend = self.backends.choose(self.radius_settings)

    # Stop

    def fail(self, error: BaseException) -> int:
        """Report why the server did not start, or cannot go on. Return the exit status (errors.py)."""
        status = getattr(error, "status", RepairError.status if isinstance(error, MACHINE) else ReportError.status)
        why = str(error) if isinstance(error, ConfigError) else describe(error)
        facts = {} if isinstance(error, ConfigError) else {"traceback": format_traceback(error)}
        self.logger.critical("server_failed" if self.ready else "start_failed", why=why, status=status, **facts)
        if self.ready:
            self.begin_shutdown("none", save=True)
            return int(status)
        with suppress(OSError, ValueError):
            print(why, file=sys.stderr)
        return int(status)

    def begin_shutdown(self, signal: str, *, save: bool) -> None:
        """Save the state for the next process, if `save` and save_state ask for it. Else `stop` disconnects all."""
        components = self.components
        self.spare.release()
        # Before the state is saved: it records what the usage files contain.
        self.steps.take("usage file", components.services.usage_files.write)
        if save:
            self.steps.take("saved state", components.server.hand_over)
        saved = components.services.handed_over
        self.logger.info("leaving", signal=signal, sessions=len(components.lns.sessions), state_saved=saved)

    def stop(self) -> None:
        """Stop all that was built. A step that fails does not keep the others from running."""
        self.spare.release()
        self.service_manager.notify("STOPPING=1")
        self.built.close()
        if self.config.pid_file:
            self.steps.take("pid file", process.remove_pid_file, Path(self.config.pid_file))
        self.logger.info("stopped", seconds=round(monotonic() - self.started, 1))
        self.steps.take("log", self.log.close)
