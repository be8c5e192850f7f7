"""The operator's console: a telnet server with the commands of the manual (reference: the command-line interface).

server.py owns the port, terminal.py the screen of one connection, shell.py its login and command lines. telnet.py and
editor.py decode octets and keys and own no socket. grammar.py declares, finds, completes and explains commands;
commands/ declares them by subject. context.py is what commands may use of the running server.
"""
