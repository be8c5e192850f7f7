"""Provide scripted peers and the networks in which they meet the server, for tests, bench/ and tools/.

The folder is flat because programs outside of this repository import these modules by name, and a peer and its stage
are used together.

Peers, each one end of a protocol, written apart from the server's code:
  L2TP and PPP   lac, endpoint, subscriber, pppclient, pppwishes, play (lac as a program), storm, tun
  IP             traffic, packets, transfer
  RADIUS         radius_server, freeradius
  operators      console, browser
  others         pppd (xl2tpd and pppd of Debian), cl2tpns (the C l2tpns), portthief
The environment of a test:
  machines       netns, uml, guest.sh, fxsave
  the server     server (a process), inprocess (in the test's process)
  arrangements   interop, radius_stage, radius_parts
  observation    inner, tshark, kernel, rates
"""

# Timeout in seconds for an awaited event. It is far longer than any event takes: only a failing test waits that long,
# and no test may fail because the machine is slow or busy.
PATIENCE = 30.0
