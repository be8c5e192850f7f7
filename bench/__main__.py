"""`python -m bench [PART ...]`: all parts but those that take long, or the named ones. Needs root.

A part may be followed by its arguments: `python -m bench setup:5` is five runs.
"""

from gevent import monkey

monkey.patch_all()

import sys  # noqa: E402
from importlib import import_module  # noqa: E402

from bench.common import machine, pin_ourselves  # noqa: E402
from tests.lab.netns import is_root  # noqa: E402

QUICK = ("setup", "memory", "forward")
LONG = ("cycles", "soak", "restart", "consoles")


def main(words: list[str]) -> int:
    if not is_root():
        print("bench: needs root, for network namespaces", file=sys.stderr)
        return 2
    pin_ourselves()
    print(machine(), flush=True)
    for word in words or QUICK:
        part, *arguments = word.split(":")
        if part not in QUICK + LONG:
            print(f"bench: no such part: {part}; there are {', '.join(QUICK + LONG)}", file=sys.stderr)
            return 2
        failed = import_module(f"bench.bench_{part}").main(*map(int, arguments))
        if failed:
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
