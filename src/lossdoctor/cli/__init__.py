"""The command line. Every command is a module of its own, imported when it is named; `--help` never imports torch."""

from __future__ import annotations

import contextlib
import importlib
import keyword
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import click

from lossdoctor import __version__
from lossdoctor.cli.columns import Context
from lossdoctor.cli.options import Settings, global_options, settings, speak
from lossdoctor.cli.wrapping import fitted
from lossdoctor.errors import LossDoctorError, LossDoctorWarning
from lossdoctor.messages import default_language
from lossdoctor.plugins import SWITCH

COMMANDS = (
    "ablate",
    "check",
    "clinic",
    "compare",
    "demo",
    "explain",
    "export",
    "import",
    "preflight",
    "report",
    "serve",
    "watch",
)
"""Every command: the module of the same name here holds it as `command`; behind a word of Python stands a "_"."""


class Refused(click.ClickException):
    """An error that says itself what was expected and what to do; nothing to add."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """On standard error, as click does, in lines that fit."""
        click.echo(fitted(f"Error: {self.format_message()}"), file=file, err=file is None)


class _Commands(click.Group):
    """Imports a command when it is asked for, and gives every text in the language asked for."""

    context_class = Context

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        extra.setdefault("obj", Settings(default_language()).for_stream(sys.stdout))
        speak(self, extra["obj"].lang)
        return super().make_context(info_name, args, parent, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        command: click.Command = importlib.import_module(f"lossdoctor.cli.{module}").command
        command.context_class = Context
        speak(command, settings(ctx).lang, ctx)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _warnings_as_sentences():
                return super().invoke(ctx)
        except LossDoctorError as error:
            raise Refused(str(error)) from error


@contextlib.contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Our warnings go to standard error without the place in the source that Python puts before them."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, LossDoctorWarning):
            click.echo(fitted(f"Warning: {message}"), err=True)
        else:
            others(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = others


def _leave_plugins_out(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """Through the environment, which processes started from here inherit."""
    if value:
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = "off"
        ctx.call_on_close(lambda: _restore(before))


def _restore(before: str | None) -> None:
    os.environ.pop(SWITCH, None)
    if before is not None:
        os.environ[SWITCH] = before


@click.group(
    "lossdoctor", cls=_Commands, context_settings={"max_content_width": 80, "help_option_names": ["-h", "--help"]}
)
@global_options
@click.option("--no-plugins", is_flag=True, is_eager=True, expose_value=False, callback=_leave_plugins_out)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """The group itself does nothing."""
