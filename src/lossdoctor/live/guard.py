"""Who may ask: the door before the pages.

The name in the Host header is checked always: a page of somebody else can give its own name the address of this machine
(DNS rebinding) and would then read what is served. An address in numbers cannot be bent so and is let in. Beyond
loopback a token is needed, once in the URL and from then on as a cookie.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("localhost", "127.0.0.1", "::1")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Styles stand in attributes where a matrix is coloured; nothing else is inline, nothing comes from elsewhere."""

HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)


class Guard:
    """Lets requests through to `app`. hosts: names it answers to; token: None where none is needed."""

    def __init__(self, app: App, *, hosts: Iterable[str], token: str | None, cookie: str = "lossdoctor") -> None:
        self._app, self._token, self._cookie = app, token, cookie
        self._hosts = frozenset(host.lower().rstrip(".") for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = [(name.lower(), value) for name, value in scope["headers"]]
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
        if len(hosts) != 1 or not self._known(hosts[0]):
            await _refuse(send, 421, "This server does not answer to that name. To allow it: --allow-host NAME")
            return
        if self._token is not None:
            given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token")
            if given is not None and self._right(given):
                await self._welcome(scope, send)
                return
            if given is not None or not self._right(self._carried(headers)):
                await _refuse(send, 403, "A token is needed: open the address that lossdoctor serve has printed.")
                return

        async def answer(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        await self._app(scope, receive, answer)

    def _known(self, host: str) -> bool:
        name = _without_port(host)
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._hosts
        return True

    def _right(self, given: str) -> bool:
        assert self._token is not None
        return secrets.compare_digest(given.encode("utf-8", "replace"), self._token.encode())

    def _carried(self, headers: list[tuple[bytes, bytes]]) -> str:
        for name, value in headers:
            if name == b"cookie":
                try:
                    found = SimpleCookie(value.decode("latin-1")).get(self._cookie)
                except CookieError:
                    continue
                if found is not None:
                    return found.value
        return ""

    async def _welcome(self, scope: Scope, send: Send) -> None:
        """The token goes from the address, where it would be copied on, into a cookie that no script can read."""
        rest = [pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"]
        # Relative, so that it is right behind a tunnel or a proxy, and can lead nowhere else.
        place = "./" + scope["path"].rpartition("/")[2] if scope["path"] in ("/run", "/compare") else "./"
        where = place + (f"?{urlencode(rest)}" if rest else "")
        cookie = f"{self._cookie}={self._token}; HttpOnly; SameSite=Lax; Path=/"
        await _respond(
            send, 303, b"", [(b"location", where.encode("latin-1", "replace")), (b"set-cookie", cookie.encode())]
        )


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


async def _refuse(send: Send, status: int, told: str) -> None:
    await _respond(send, status, f"{told}\n".encode(), [(b"content-type", b"text/plain; charset=utf-8")])


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = (b"content-length", str(len(body)).encode())
    all_headers = [*headers, length, (b"cache-control", b"no-store"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
