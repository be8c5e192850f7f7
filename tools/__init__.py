"""Programs for developers: generated documentation, demonstration, fuzzer, a telnet transcript, packages to install.

They use the peers and the stage of tests/lab. Tests import from here only what they test.
"""
