"""Find the host that the mail API answers on: each module of the server has its own.

Only a listing without a token is asked for: no password is sent to hosts that nobody named.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import urlsplit

from airflow_provider_r7mail.client import calls
from airflow_provider_r7mail.client.http import ClientConfig
from airflow_provider_r7mail.client.models import MessageFilter
from airflow_provider_r7mail.client.session import Client
from airflow_provider_r7mail.exceptions import (
    R7MailAuthError,
    R7MailConfigError,
    R7MailError,
    R7MailRequestError,
)

MODULES = ("mail", "cmail", "cddisk", "admin", "calendar")
"""The first labels of the modules' usual host names; the domain itself is tried, too."""

PROBE_SECONDS = 5.0

_REFUSED = frozenset({401, 403, 406})
_ELSEWHERE = frozenset({None, 404, 405})


@dataclass(frozen=True, slots=True)
class Host:
    """A host, and what it answers to a listing without a token.

    :param url: its URL
    :param kind: `mail` for the mail API, `perhaps` if it fails as an API does, `other` for anything
        else, `none` for no response
    :param says: what it answers, in words
    """

    url: str
    kind: Literal["mail", "perhaps", "other", "none"]
    says: str


def hosts_of(url: str) -> list[str]:
    """Return the URLs to try: the given one, and the usual names of its domain."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        first, _, parent = name.partition(".")
        domains = [parent] if first in MODULES and parent else [name]
        if first not in MODULES and "." in parent:
            domains.append(parent)
    else:
        domains = []
    names = [name]
    for domain in domains:
        names += [f"{module}.{domain}" for module in MODULES] + [domain]
    port = f":{parts.port}" if parts.port else ""
    found = [url, *(f"{parts.scheme}://{one}{port}" for one in names[1:] if one != name)]
    return list(dict.fromkeys(found))


def find_hosts(config: ClientConfig) -> list[Host]:
    """Ask all hosts at once, and return what they answer.

    :param config: how to reach the server; its URL names a host or a domain
    """
    urls = hosts_of(config.url)
    with ThreadPoolExecutor(len(urls)) as pool:
        return list(pool.map(lambda url: _probe(replace(config, url=url)), urls))


def _probe(config: ClientConfig) -> Host:
    listing = calls.list_messages(
        0, MessageFilter(), start=None, end=None, offset=0, size=1, parse=bytes
    )
    call = replace(listing, authorized=False)
    quick = replace(config, timeout=PROBE_SECONDS, connect_timeout=PROBE_SECONDS, max_retries=0)
    try:
        with Client(quick) as client, client.exchange(call, 1) as response:
            status, form = response.status_code, response.headers.get("content-type", "")
    except R7MailRequestError as error:
        return Host(config.url, "none", error.reason)
    if "html" in form.lower():
        return Host(config.url, "other", f"a web page (status {status})")
    if status in _REFUSED:
        return Host(config.url, "mail", f"the mail API (status {status})")
    if status in _ELSEWHERE:
        return Host(config.url, "other", f"another module (status {status})")
    return Host(config.url, "perhaps", f"status {status}")


def advice(error: R7MailError, config: ClientConfig) -> str:
    """Return where the mail API answers, if a failed check may have asked the wrong host.

    :param error: why the check failed
    :param config: how the server was reached
    """
    about_host = isinstance(error, R7MailRequestError) and not isinstance(error, R7MailAuthError)
    if not about_host or getattr(error, "status", None) not in _ELSEWHERE | {200}:
        return ""
    try:
        return summary_of(find_hosts(config), config.url)
    except R7MailConfigError:  # the error at hand says so
        return ""


def summary_of(hosts: Sequence[Host], url: str) -> str:
    """Say which hosts answer the mail API."""
    for kind, verb in (("mail", "answers"), ("perhaps", "may be")):
        found = [host.url for host in hosts if host.kind == kind]
        if url in found:
            return ""
        if found:
            return f"The mail API {verb} at {' or '.join(found)}: give that as the server."
    answers: defaultdict[str, list[str]] = defaultdict(list)
    for host in hosts:
        answers[host.says].append(host.url)
    told = "; ".join(f"{says}: {', '.join(urls)}" for says, urls in answers.items())
    return f"The mail API is at none of the usual host names. {told}."
