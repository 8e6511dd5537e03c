"""Where webhooks may go: the URLs that callers name, and the addresses that these lead to; pure."""

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from pyfunq.errors import InvalidInput

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_FIELD = "webhook"
_LONGEST = 2_000
_PLAIN = re.compile(r"[!-~]+")
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\Z")
_ENDS_IN_NUMBER = re.compile(r"(^|\.)(0x[0-9a-f]*|[0-9]+)\Z")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER: tuple[Network, ...] = (
    ipaddress.IPv4Network("168.63.129.16/32"),  # Azure's host agent: public, and answers virtual machines alone
    # What `is_global` says of these depends on Python's version.
    ipaddress.IPv4Network("192.0.0.0/24"),
    ipaddress.IPv6Network("2001::/23"),
    ipaddress.IPv6Network("3fff::/20"),
    # Tunnels that are given up; their addresses hide others.
    ipaddress.IPv4Network("192.88.99.0/24"),
    ipaddress.IPv6Network("2002::/16"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in the parts by which it is asked, so that nobody parses it again in another way."""

    scheme: str
    host: str
    """In lower case, an IPv6 address without brackets."""
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        """As the header Host has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """What the operator lets callers name."""

    allow_http: bool = False
    ports: tuple[range, ...] = (range(80, 81), range(443, 444), range(8000, 10_000))
    networks: tuple[Network, ...] = ()
    """Those that are not public, and yet may be told."""

    def target(self, url: str) -> Target:
        """Raises InvalidInput; names are not looked up here: what they lead to is checked when they are asked."""
        scheme, host, port, path = _parts(url)
        if scheme != "https" and not (scheme == "http" and self.allow_http):
            raise _refused("its URL must begin with https://")
        if not any(port in some for some in self.ports):
            raise _refused(f"its URL must not name port {port} (PYFUNQ_WEBHOOK_PORTS)")
        address = _address_in(host)
        if address is not None and not self.permits(address):
            raise _refused("its URL must lead to a public address")
        return Target(scheme, host if address is None else str(address), port, path)

    def permits(self, address: Address) -> bool:
        """Whether it is public, or in one of the networks that the operator named, in whatever form it is written."""
        inner = _embedded(address)
        if any(one in network for network in self.networks for one in (address, inner)):
            return True
        if inner.is_multicast or not inner.is_global or any(inner in network for network in _NEVER):
            return False
        return isinstance(inner, ipaddress.IPv4Address) or inner in _UNICAST


def ports_of(texts: Iterable[str]) -> tuple[range, ...]:
    """`443` or `8000-9999` each. Raises ValueError."""
    found = []
    for text in texts:
        first, _, last = text.partition("-")
        ports = range(int(first), int(last or first) + 1)
        if not ports or ports[0] < 1 or ports[-1] > 65_535:
            raise ValueError(f"{text!r} is not a port or a range of ports")
        found.append(ports)
    return tuple(found)


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Raises ValueError."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def _parts(url: str) -> tuple[str, str, int, str]:
    if not isinstance(url, str) or not 1 <= len(url) <= _LONGEST or not _PLAIN.fullmatch(url) or "\\" in url:
        raise _refused(f"its URL must be a text of at most {_LONGEST:,} ASCII characters, without spaces")
    try:
        found = urlsplit(url)
        host, port = found.hostname, found.port
    except ValueError:
        raise _refused("its URL is not one") from None
    if found.scheme not in _DEFAULT_PORTS or not host:
        raise _refused("its URL must begin with https://")
    if "@" in found.netloc:
        raise _refused("its URL must hold no user or password")
    if "#" in url:
        raise _refused("its URL must have no fragment")
    if port == 0 or found.netloc.endswith(":"):
        raise _refused("its URL has no valid port")
    path = (found.path or "/") + (f"?{found.query}" if found.query else "")
    return found.scheme, host, port or _DEFAULT_PORTS[found.scheme], path


def _address_in(host: str) -> Address | None:
    """The address that a host is, in any of the forms that systems take for one; None: it is a name."""
    if ":" in host:
        try:
            return ipaddress.IPv6Address(host if "%" not in host else "")
        except ValueError:
            raise _refused("its URL's host is not valid") from None
    if not _NAME.match(host):
        raise _refused("its URL's host is not valid; write an international name as xn--")
    if host == "localhost" or host.endswith(".localhost"):
        return ipaddress.IPv4Address("127.0.0.1")
    if not _ENDS_IN_NUMBER.search(host):
        return None
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))  # 0x7f.1, 2130706433, 017700000001
    except OSError:
        raise _refused("its URL's host is not valid") from None


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, where it does."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def _refused(why: str) -> InvalidInput:
    return InvalidInput(f"the webhook cannot be used: {why}", field=_FIELD)
