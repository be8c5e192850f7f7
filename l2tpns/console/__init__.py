"""The operator's console: a telnet server with the words of the manual (reference: the command-line interface).

telnet.py and editor.py are pure: octets and keys. terminal.py is one connection's screen, shell.py what is typed there,
server.py the port. grammar.py knows how commands are declared, shortened and helped with; commands.py and show*.py
declare them. office.py is what they may see and do.
"""
