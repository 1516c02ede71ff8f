"""`lossdoctor watch`: a growing run in the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossdoctor.cli.options import Settings, global_options, settings
from lossdoctor.messages import text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from lossdoctor.live.watching import Watched
    from lossdoctor.rules import Finding

EVERY = 1.0
"""Seconds between two looks at least."""

SHARE = 0.05
"""Of one core that looking takes at most, besides the rules: the machine has a training to do."""

LOG_SECONDS = 10.0
"""Without a terminal there is a line this often at most."""

OVER = ("ended", "deleted")


@click.command("watch")
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--once", is_flag=True)
@global_options
@click.pass_context
def command(ctx: click.Context, *, run: Path, once: bool) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.live.watching import Watched
    from lossdoctor.report.frame import Frame

    talk, watched = settings(ctx), Watched(run)
    console = talk.console()
    try:
        if once:
            watched.look(sure=True)
            console.print(Frame(watched.sight, talk.lang))
        elif console.is_terminal:
            _drawn(watched, console, talk)
        else:
            _logged(watched, console, talk)
    except KeyboardInterrupt:
        click.echo(text("live.left", talk.lang), err=True)
    finally:
        watched.close()
    if watched.sight.pulse.state in ("absent", "deleted", "unreadable"):
        ctx.exit(2)


def _drawn(watched: Watched, console: Console, talk: Settings) -> None:
    """The same place of the screen, again and again."""
    from rich.live import Live

    from lossdoctor.report.frame import Frame

    with Live(Frame(watched.sight, talk.lang), console=console, auto_refresh=False) as live:
        while True:
            rest = _look(watched)[1]
            live.update(Frame(watched.sight, talk.lang), refresh=True)
            if watched.sight.pulse.state in OVER:
                return
            time.sleep(rest)


def _logged(watched: Watched, console: Console, talk: Settings) -> None:
    """A line now and then, when it says something new, and each finding when it appears."""
    from rich.text import Text

    from lossdoctor.report.frame import told_plainly

    last, before = 0.0, ""
    while True:
        fresh, rest = _look(watched)
        over = watched.sight.pulse.state in OVER
        told = told_plainly(watched.sight, talk.lang)
        if told != before and (over or not before or time.monotonic() - last >= LOG_SECONDS):
            console.print(Text(told), soft_wrap=True)
            last, before = time.monotonic(), told
        _tell(fresh, console, talk)
        if over:
            return
        time.sleep(rest)


def _look(watched: Watched) -> tuple[Sequence[Finding], float]:
    """What is new, and how long to rest until the next look."""
    started = time.process_time()
    fresh = watched.look()
    return fresh, max(EVERY, (time.process_time() - started) / SHARE)


def _tell(fresh: Sequence[Finding], console: Console, talk: Settings) -> None:
    from rich.text import Text

    from lossdoctor.report.frame import headed
    from lossdoctor.report.wording import visible

    for finding in fresh:
        line = Text.assemble(headed(finding, talk.lang), ": ", visible(finding.message.text(talk.lang)))
        console.print(line, soft_wrap=True)
