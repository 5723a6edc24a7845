"""Find the HTTP proxy for a server in HTTPS_PROXY, HTTP_PROXY and NO_PROXY."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def environment_proxy(url: str) -> str | None:
    """Return the environment's proxy for a server; None to reach it directly.

    :param url: the server's URL
    """
    parts = urlsplit(url)
    proxies = getproxies()
    # Python's own rules include those of macOS and Windows.
    if proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    if is_exempt(parts.hostname or "", port, proxies.get("no", "")):
        return None
    return proxies.get(parts.scheme)


def is_exempt(host: str, port: int | None, no_proxy: str) -> bool:
    """Return whether NO_PROXY has a host: by name, parent domain, pattern, address or network.

    :param host: the host, in lower case, an IPv6 address without brackets
    :param port: its port, which an entry may have
    :param no_proxy: entries such as `10.0.0.0/8`, `*.corp`, `127.*`, `::1`, `mail.corp:8443`
    """
    host = host.rstrip(".")
    return any(_fits(entry, host, port) for entry in re.split(r"[\s,]+", no_proxy.lower()) if entry)


def _fits(entry: str, host: str, port: int | None) -> bool:
    found = re.fullmatch(r"(\[[^]]*\]|[^:]*):([0-9]+)", entry)  # not a bare IPv6 address
    name, its_port = found.groups() if found else (entry, None)
    if its_port is not None and int(its_port) != port:
        return False
    name = re.sub(r"[\[\]]", "", name)
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:
        name = name.lstrip(".")
        return fnmatchcase(host, name) or host.endswith(f".{name}")
