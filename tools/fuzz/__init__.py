"""The fuzzer (`make fuzz`)."""
