"""Keep a server's cookies: a balancer's say which node has the login (F8). No Airflow."""

from __future__ import annotations

from http.cookiejar import CookieJar

import httpx


class Cookies:
    """The cookies that all requests of a client carry, whatever sends them."""

    def __init__(self) -> None:
        self.jar = CookieJar()
        """The same cookies, for httpx's own clients."""

    def header(self, url: str) -> dict[str, str]:
        """Return the header with the cookies for a request; empty without any."""
        if not len(self.jar):  # a look-up takes as long as all else about a request
            return {}
        request = httpx.Request("GET", url)
        httpx.Cookies(self.jar).set_cookie_header(request)
        found = request.headers.get("Cookie")
        return {} if found is None else {"Cookie": found}

    def keep(self, url: str, response: httpx.Response) -> None:
        """Keep the cookies that a response sets.

        :param url: the request's
        """
        if "set-cookie" in response.headers:
            response.request = httpx.Request("GET", url)
            httpx.Cookies(self.jar).extract_cookies(response)
