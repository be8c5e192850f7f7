"""PPP (RFC 1661): frames, the option negotiation automaton, LCP, IPCP, PAP and CHAP. Pure."""
