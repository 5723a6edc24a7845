"""Keep a server's cookies: a balancer's say which node has the login. No Airflow."""

from __future__ import annotations

from http.cookiejar import Cookie, CookieJar

import httpx


class Cookies(CookieJar):
    """The cookies that all requests of a client carry, whatever sends them.

    To search a jar takes longer than all else about a request, so what was found is kept until the
    cookies change.
    """

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[str, dict[str, str]] = {}

    def header(self, url: str) -> dict[str, str]:
        """Return the header with the cookies for a request; empty without any."""
        place = url.partition("?")[0]
        found = self._found.get(place)
        if found is None:
            found = {}
            if len(self):
                request = httpx.Request("GET", place)
                httpx.Cookies(self).set_cookie_header(request)
                if (cookies := request.headers.get("Cookie")) is not None:
                    found = {"Cookie": cookies}
            if all(cookie.expires is None for cookie in self):
                self._found[place] = found
        return found

    def keep(self, url: str, response: httpx.Response) -> None:
        """Keep the cookies that a response sets.

        :param url: the request's
        """
        if "set-cookie" in response.headers:
            response.request = httpx.Request("GET", url)
            httpx.Cookies(self).extract_cookies(response)

    def set_cookie(self, cookie: Cookie) -> None:
        """Add a cookie, or replace it."""
        super().set_cookie(cookie)
        self._found.clear()

    def clear(
        self, domain: str | None = None, path: str | None = None, name: str | None = None
    ) -> None:
        """Remove a cookie, those of a path or domain, or all."""
        super().clear(domain, path, name)
        self._found.clear()
