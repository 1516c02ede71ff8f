"""What all commands share: the language, the colours, and help texts from the message catalogues."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from lossdoctor.messages import keys, languages, text

if TYPE_CHECKING:
    from rich.console import Console

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Settings:
    """How to talk to the user: a language of the catalogues; colour False for none, None to let the terminal say."""

    lang: str = "en"
    colour: bool | None = None

    def console(self, *, err: bool = False, quiet: bool = False) -> Console:
        """Where to print: standard output, error or nowhere; plain where the user or the terminal wants it so."""
        from rich.console import Console

        return Console(no_color=True if self.colour is False else None, highlight=False, stderr=err, quiet=quiet)

    def for_stream(self, stream: TextIO) -> Settings:
        """The same, in English where the stream cannot show the language."""
        try:
            text("cli.help", self.lang).encode(stream.encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return replace(self, lang="en")
        return self


def settings(ctx: click.Context) -> Settings:
    """The settings of this call of the command line."""
    found = ctx.find_root().obj
    return found if isinstance(found, Settings) else Settings()


def global_options(function: F) -> F:
    """`--lang` and `--no-color`, welcome before and after the name of a command."""
    lang = click.option(
        "--lang", type=click.Choice(languages()), is_eager=True, expose_value=False, callback=_set_language
    )
    colour = click.option("--no-color", is_flag=True, is_eager=True, expose_value=False, callback=_set_colour)
    return lang(colour(function))


def speak(command: click.Command, lang: str, parent: click.Context | None = None) -> None:
    """Give a command its help texts: `cli.<command>`, and for options `cli.<command>.<option>` or `cli.<option>`."""
    catalogue = keys(lang)
    command.help = text(f"cli.{command.name}", lang)
    context = click.Context(command, parent=parent, **command.context_settings)
    help_option = command.get_help_option(context)
    if help_option is not None and not any("--help" in parameter.opts for parameter in command.params):
        # Old versions of click make it anew each time they are asked, without our text.
        command.params.append(help_option)
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            flag = max(parameter.opts, key=len).strip("-").replace("-", "_")
            own = f"cli.{command.name}.{flag}"
            parameter.help = text(own if own in catalogue else f"cli.{flag}", lang)


def _set_language(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.find_root().obj = replace(settings(ctx), lang=value).for_stream(sys.stdout)
        speak(ctx.command, settings(ctx).lang, ctx.parent)


def _set_colour(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().obj = replace(settings(ctx), colour=False)
        ctx.find_root().color = False
