"""The command line. Every command is a module of its own, imported when it is named; `--help` never imports torch."""

from __future__ import annotations

import importlib
import keyword
import sys
from typing import Any

import click

from lossdoctor import __version__
from lossdoctor.cli.columns import Context
from lossdoctor.cli.options import Settings, global_options, settings, speak
from lossdoctor.errors import LossDoctorError
from lossdoctor.messages import default_language

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
            return super().invoke(ctx)
        except LossDoctorError as error:
            raise Refused(str(error)) from error


@click.group(
    "lossdoctor", cls=_Commands, context_settings={"max_content_width": 80, "help_option_names": ["-h", "--help"]}
)
@global_options
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """The group itself does nothing."""
