"""The settings of the RADIUS client, taken from the configuration, and where its servers are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address

from l2tpns.config.settings import Config


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where one RADIUS server takes requests of one kind."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class MessageAuthenticator(Enum):
    """radius_require_message_authenticator: what a reply must carry (RFC 2869 5.14, CVE-2024-3596)."""

    AUTO = "auto"  # required of a server once it has sent a valid one
    YES = "yes"
    NO = "no"


@dataclass(frozen=True, slots=True)
class RadiusSettings:
    """One consistent set of settings. After a change, configure() is called with a new one."""

    servers: tuple[ServerAddress, ...] = ()
    accounting_servers: tuple[ServerAddress, ...] = ()
    secret: bytes = b""
    accounting: bool = False
    bind_min: int = 0
    bind_max: int = 0
    require: MessageAuthenticator = MessageAuthenticator.AUTO
    retries: int = 0  # tries of one request; 0: twice the number of servers
    timeout: float = 1.0  # before the second try; doubles from there
    dead_time: float = 60.0  # for which a silent server gets no new requests
    max_sockets: int = 64  # per server and kind, 256 requests each
    nas_address: IPv4Address | None = None  # None: the local address of the socket to the server
    nas_identifier: str = ""

    @classmethod
    def from_config(cls, config: Config) -> RadiusSettings:
        ports = config.radius_ports
        return cls(
            servers=tuple(ServerAddress(str(s.address), s.auth_port) for s in config.radius_servers),
            accounting_servers=tuple(ServerAddress(str(s.address), s.acct_port) for s in config.radius_servers),
            secret=config.radius_secret_octets,
            accounting=config.radius_accounting,
            bind_min=ports.start,
            bind_max=ports.stop - 1,
            require=MessageAuthenticator(config.radius_require_message_authenticator),
            retries=config.radius_retries,
            timeout=float(config.radius_timeout),
            dead_time=float(config.radius_dead_time),
            nas_address=config.main_address,
            nas_identifier=config.hostname,
        )
