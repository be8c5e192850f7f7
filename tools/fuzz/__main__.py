"""`make fuzz`: a million hostile datagrams at a live daemon (campaign.py).

    python -m tools.fuzz --count 1000000 --seed 1

Exit status 0: no traceback, no good session or packet lost, memory flat, and all tables as before. Needs root.
"""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import sys  # noqa: E402

from tests.lab.netns import Lab  # noqa: E402
from tools.fuzz.campaign import Campaign  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--debug", type=int, default=3, help="the daemon's debug level")
    arguments = parser.parse_args()
    with Lab() as lab:
        campaign = Campaign(lab, seed=arguments.seed, settings={"debug": arguments.debug})
        campaign.set_up(apart=True)
        report = campaign.run(arguments.count)
    print(report)
    sys.exit(1 if report.faults else 0)


if __name__ == "__main__":
    main()
