"""Scripted peers and laboratories for tests, the demo and the benchmarks."""

# How many seconds a test waits for what is to happen. Far more than it takes: only a test that fails waits for all of
# it, and none may fail because the machine is slow or busy with something else.
PATIENCE = 30.0
