"""Figures for this machine: `python -m bench` (`make bench`), one file per question, see docs/performance.md."""
