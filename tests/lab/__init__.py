"""Scripted peers and laboratories for tests, the demo and the benchmarks."""
