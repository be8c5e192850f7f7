"""The Python package: what it needs and what is in it. `make install` (Makefile) puts it on a machine."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "l2tpns/__init__.py").read_text(), re.M)
assert VERSION is not None

SCRIPTS = [
    "l2tpns = l2tpns.__main__:main",
    "nsctl = l2tpns.nsctl.__main__:main",
    "l2tpns-capture = l2tpns.capture.__main__:main",
]

setup(
    name="l2tpns",
    version=VERSION[1],
    description="L2TP network server: brings a LAC's PPP subscribers to the Internet",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["l2tpns", "l2tpns.*"]),
    package_data={"l2tpns": ["py.typed", "dataplane/fastpath/*.o", "monitoring/status.*"]},
    entry_points={"console_scripts": SCRIPTS},
    # Each range starts at the release that was measured and ends before the one that may break its interface.
    install_requires=[
        "gevent>=26.9,<27",
        "pyroute2>=0.9.7,<0.10",
        "pyrad>=2.6,<3",
        "python-iptables>=1.2,<2",
        "structlog>=26.1,<27",
        "orjson>=3.13,<4",
        "prometheus_client>=0.26,<0.27",
        "crypt-r>=3.13,<4",
        "pycryptodomex>=3.20,<4",
    ],
    extras_require={
        "dev": [
            "pytest>=9.2,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.170,<7",
            "mypy>=2.4,<3",
            "ruff>=0.17.6,<0.18",
            "pexpect>=4.9,<5",
        ],
        "bench": ["matplotlib>=3.8,<4"],
    },
)
