"""`make demo`: a LAC, the server and a host beyond it on this machine.

    python -m tools.demo           run through and leave nothing behind; exit status 0 only if every step was OK
    python -m tools.demo --keep    stop before the end, print what to try, and go on at Enter or Ctrl-C

Needs root: it builds network namespaces and tun devices.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.lab.netns import Lab, is_root
from tools.demo.story import Story
from tools.demo.walkthrough import Demo


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description="Three subscribers, a LAC, the server, a host.")
    parser.add_argument("--keep", action="store_true", help="stay up to play with, until Enter or Ctrl-C")
    arguments = parser.parse_args()
    if not is_root():
        sys.exit("make demo needs root: it builds network namespaces and tun devices")
    if not Path("/dev/net/tun").exists():
        sys.exit("make demo needs /dev/net/tun: load the module tun, or give this container the device")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    story = Story()
    with Lab() as lab:
        Demo(lab, story).run(keep=arguments.keep)
    good = story.summary("l2tpns: what this demo has shown")
    if good and not arguments.keep:
        story.plain("To play with it: KEEP=1 make demo.  How it works: docs/overview.md.")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
