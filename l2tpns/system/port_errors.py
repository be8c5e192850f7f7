"""Keep the kernel from telling LACs that no process listens: a LAC that hears so may take its tunnels down.

While the server restarts, each datagram to its port is answered by ICMP "port unreachable" (RFC 1122 3.2.2.1). With
save_state, a rule of the filter table drops these answers. It is there as long as the kept tun device: also after
kill -9, and it costs the packets of subscribers nothing.
"""

from __future__ import annotations

from l2tpns.config.settings import Config
from l2tpns.runtime.log import Logger
from l2tpns.system.firewall import Firewall, FirewallError

# The type, then by the lengths of both IP headers to the ports of the datagram that is answered.
_RULE = "-p icmp -m icmp --icmp-type 3/3 -m u32 --u32 0>>22&0x3C@8>>22&0x3C@8&0xFFFF=0x{port:X} -j DROP"


class PortErrors:
    """The rule for one UDP port."""

    def __init__(self, config: Config, firewall: Firewall, port: int, log: Logger) -> None:
        self._config, self._firewall, self._log = config, firewall, log
        self._rule = _RULE.format(port=port)
        self._dropped = False

    def apply_config(self) -> None:
        """Ensure the rule, or remove it, as save_state says. A refusal is logged. May yield."""
        if not self._config.save_state and not self._dropped:
            return
        try:
            self._firewall.load()
            with self._firewall.change("filter") as (table,):
                if self._config.save_state:
                    table.ensure("OUTPUT", self._rule, first=True)
                else:
                    table.remove("OUTPUT", self._rule)
        except FirewallError as error:
            self._log.warning("port_errors_not_dropped", why=f"{error}: a restart may cost tunnels")
            return
        self._dropped = self._config.save_state
