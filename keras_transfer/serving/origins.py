"""Who may ask: the names of this server in `Host`, and the pages of other sites in `Origin`.

Without a check, every page that a user opens could use a server that listens on their machine only:
by a request across sites, or under a name of its own that resolves to this machine (DNS rebinding).
Sources: https://fetch.spec.whatwg.org/#origin-header, https://www.w3.org/TR/fetch-metadata/
"""

import re
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from keras_transfer.serving.protocol import RefusedError
from keras_transfer.serving.service import json_response
from keras_transfer.serving.settings import Settings

_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\\?#\s]+)(:[0-9]*)?", re.IGNORECASE)
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every response that has no others: nothing is guessed, embedded or framed by other sites."""


class CheckOrigin:
    """ASGI middleware that refuses other hosts and sites, and completes the headers."""

    def __init__(self, app: ASGIApp, settings: Settings):
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def complete(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            check_headers(Headers(scope=scope), self._settings, method=scope["method"])
        except RefusedError as error:
            response = json_response(
                {"error": error.detail}, status=error.status_code, headers=error.headers
            )
            await response(scope, receive, complete)
        else:
            await self._app(scope, receive, complete)


def check_headers(headers: Headers, settings: Settings, *, method: str) -> None:
    """Check `Host`, the site of the page that asks, and that the body has one length.

    Raises:
        RefusedError: 403 for another host or site, 400 for two lengths.
    """
    if "transfer-encoding" in headers and "content-length" in headers:
        # A proxy may take the other one, and see a second request in the body.
        words = "Only one of Content-Length and Transfer-Encoding may be given"
        raise RefusedError(400, words, headers={"Connection": "close"})
    host = headers.get("host")
    if host is not None and not is_own_host(host, settings):
        raise RefusedError(
            403,
            f"Host {host[:80]!r} is not a name of this server, received on {settings.host}; "
            "start it with --allow-hosts to add names",
        )
    origin, site = headers.get("origin"), headers.get("sec-fetch-site")
    if origin is None:
        is_foreign = method == "POST" and site in ("cross-site", "same-site")
    else:
        own = site == "same-origin" or origin.partition("://")[2].lower() == (host or "").lower()
        is_foreign = not own and not {"*", origin.lower()} & set(settings.origins)
    if is_foreign:
        raise RefusedError(
            403,
            f"Pages of {(origin or 'other sites')[:80]!r} may not use this server; "
            "start it with --allow-origins to allow them",
        )


def is_own_host(host: str, settings: Settings) -> bool:
    """Whether a `Host` header names this server.

    On loopback its names are `localhost` and loopback addresses; elsewhere all addresses, and any
    name unless `allow_hosts` lists some.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = match[1].lower()
    if name in settings.hosts or _is_loopback(name):
        return True
    return not _is_loopback(settings.host) and (not settings.hosts or _is_address(name))


def _is_loopback(name: str) -> bool:
    if _is_address(name):
        return ip_address(name.strip("[]")).is_loopback
    return name == "localhost" or name.endswith(".localhost")


def _is_address(name: str) -> bool:
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
