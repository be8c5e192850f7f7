"""The command `l2tpns`: parse the arguments and run the daemon. Monkey-patching must precede all other imports."""

import gevent
from gevent import monkey

monkey.patch_all()
gevent.config.track_greenlet_tree = False  # else each greenlet keeps the stack of the one that spawned it

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from contextlib import suppress  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import NoReturn  # noqa: E402

from l2tpns import __version__  # noqa: E402
from l2tpns.config.file import default_config  # noqa: E402
from l2tpns.config.live import Options  # noqa: E402
from l2tpns.daemon import MACHINE, Daemon  # noqa: E402
from l2tpns.errors import ConfigError, L2tpnsError, RepairError  # noqa: E402
from l2tpns.runtime.exceptions import describe  # noqa: E402
from l2tpns.system import cleanup  # noqa: E402


class CleanKernel(argparse.Action):
    """The option --clean-kernel, which cleans up and exits, as --version prints and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        try:
            removed = cleanup.remove_everything()
        except L2tpnsError as error:
            parser.exit(1, f"{error}\n")
        parser.exit(0, f"{removed} rules, chains, sets and devices removed\n")


def parse_arguments(argv: list[str] | None = None) -> Options:
    """Return the options of the manual. -h is the host name there, so only --help prints help."""
    parser = argparse.ArgumentParser(
        prog="l2tpns", add_help=False, description="L2TP network server. Runs in the foreground by default."
    )
    parser.add_argument(
        "-d", dest="detach", action="store_true", help="detach from the terminal when everything is ready"
    )
    parser.add_argument("-v", dest="verbose", action="count", default=0, help="log more (may be repeated)")
    parser.add_argument("-c", dest="config", metavar="FILE", type=Path, help="configuration file")
    parser.add_argument("-h", dest="hostname", metavar="HOSTNAME", help="our host name, overrides the one in the file")
    parser.add_argument("-a", dest="address", metavar="ADDRESS", help="bind_address, overrides the one in the file")
    parser.add_argument(
        "--clean-kernel",
        action=CleanKernel,
        nargs=0,
        help="remove what a server that is gone left in the kernel, and exit",
    )
    parser.add_argument("--version", action="version", version=f"l2tpns {__version__}")
    parser.add_argument("--help", action="help", help="show this help and exit")
    found = parser.parse_args(argv)
    config = found.config or default_config(os.environ.get("L2TPNS_ETC", "/etc/l2tpns"))
    config = config.absolute()  # -d changes the directory, and a reload reads the file again
    return Options(config, found.detach, found.verbose, found.hostname, found.address)


def main() -> int:
    """Run the daemon until it is stopped. Return the exit status."""
    try:
        return Daemon(parse_arguments()).run()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.status
    except MACHINE as error:
        print(f"l2tpns: {describe(error)}", file=sys.stderr)
        return RepairError.status


if __name__ == "__main__":
    status = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk or a closed pipe: the exit status matters more
            stream.flush()
    # Everything is closed. Python would now destroy the greenlet of each session: seconds for 10,000 of them, in which
    # the next process cannot start.
    os._exit(status)
