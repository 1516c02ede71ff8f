"""`lossdoctor serve`: the live page of all runs in a folder."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from lossdoctor.cli.options import global_options, settings
from lossdoctor.errors import MissingExtraError, UsageError, mismatch
from lossdoctor.messages import text

if TYPE_CHECKING:
    from lossdoctor.live.hub import Hub

PORT = 7007
GRACE = 2
"""Seconds a page that does not take what it is sent can hold up the end of the server."""


@click.command("serve")
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--host", default="127.0.0.1", metavar="ADDRESS")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, metavar="N")
@click.option("--token", "guarded", is_flag=True)
@click.option("--allow-host", "allowed", multiple=True, metavar="NAME")
@global_options
@click.pass_context
def command(ctx: click.Context, *, folder: Path, host: str, port: int, guarded: bool, allowed: tuple[str, ...]) -> None:
    """Its help text is in the message catalogues."""
    try:
        import uvicorn

        from lossdoctor.live.app import application
    except ImportError as error:
        raise MissingExtraError(str(error.name or "starlette").partition(".")[0], "serve", "The live page") from error
    from lossdoctor.live.folder import Runs
    from lossdoctor.live.guard import LOOPBACK
    from lossdoctor.live.hub import Hub

    lang, runs = settings(ctx).lang, Runs(folder)
    listening = _listen(host, port)
    address, port = listening.getsockname()[:2]
    loopback = address == "::1" or address.startswith("127.")
    token = secrets.token_urlsafe(24) if guarded or not loopback else None
    named = {*LOOPBACK, *allowed} | (set() if loopback else {host, socket.gethostname(), socket.getfqdn()})
    hub = Hub(runs)
    app = application(hub, str(runs.root), lang=lang, hosts=named, token=token, cookie=f"lossdoctor-{port}")
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        http="h11",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    url = _url(host, address, port, token)
    click.echo(text("live.serving", lang, root=runs.root, url=url))
    try:
        _stopping(uvicorn, config, hub).run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn has stopped cleanly, and passes the signal on
    finally:
        listening.close()
    click.echo(text("live.stopped", lang), err=True)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound: that the port is taken is known before anything is printed."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(place[:2], family=family, backlog=256)
    except (OSError, UnicodeError) as error:
        got = f"{host}:{port}: {error}"
        raise UsageError(
            mismatch("This address cannot be served.", "a free port of this machine", got, "choose another with --port")
        ) from error


def _url(host: str, address: str, port: int, token: str | None) -> str:
    """Where to go. The address that means every interface is no place to go to."""
    shown = socket.gethostname() if address in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    return f"http://{shown}:{port}/" + (f"?{urlencode({'token': token})}" if token else "")


def _stopping(uvicorn: Any, config: Any, hub: Hub) -> Any:
    """A server whose open streams end when it is told to stop: it would wait for them."""

    class Server(uvicorn.Server):  # type: ignore[misc]
        def handle_exit(self, sig: int, frame: Any) -> None:
            hub.stop()
            super().handle_exit(sig, frame)

    return Server(config)
