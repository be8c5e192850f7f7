"""RFC 1661 and what runs over it: frames, the option negotiation automaton, LCP, IPCP, PAP, CHAP. Pure."""
