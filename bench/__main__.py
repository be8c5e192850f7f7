"""`python -m bench [PART ...]`: all parts but those that take long, or the named ones. Needs root.

A part may be followed by its arguments: `python -m bench setup:5` is five runs.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from functools import partial  # noqa: E402
from importlib import import_module  # noqa: E402
from inspect import signature  # noqa: E402
from typing import Any  # noqa: E402

from bench.common import machine, pin_ourselves  # noqa: E402
from tests.lab.netns import is_root  # noqa: E402

QUICK = ("setup", "memory", "forward")
LONG = ("cycles", "soak", "churn", "restart", "consoles", "throttle", "garden", "snoop", "plugins", "storm", "outage")


def main(words: list[str]) -> int:
    try:
        parts = [find(word) for word in words or QUICK]
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    if not is_root():
        print("bench: needs root, for network namespaces", file=sys.stderr)
        return 2
    pin_ourselves()
    print(machine(), flush=True)
    return int(any(part() for part in parts))  # stop at the first that fails


def find(word: str) -> Callable[[], Any]:
    """Return what to run for one argument. Raises ValueError, which says what is wrong with it."""
    part, *arguments = word.split(":")
    if part not in QUICK + LONG:
        raise ValueError(f"no such part: {part}; there are {', '.join(QUICK + LONG)}")
    run = import_module(f"bench.bench_{part}").main
    takes = list(signature(run).parameters)
    if len(arguments) > len(takes) or not all(argument.isdecimal() for argument in arguments):
        raise ValueError(f"{part} takes {':'.join(takes).upper() or 'no argument'}{' (numbers)' if takes else ''}")
    return partial(run, *map(int, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
