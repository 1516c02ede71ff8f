"""`lossdoctor preflight`: the checks before the first step, on what a function of the user returns."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from lossdoctor.cli.answer import FAIL_ON, deliver, exit_code
from lossdoctor.cli.options import global_options, settings
from lossdoctor.errors import UsageError, mismatch

FORMATS = ("text", "json", "markdown", "sarif", "github")
_FORM = "module:function, such as train:preflight"


@click.command("preflight")
@click.argument("function", metavar="MODULE:FUNCTION")
@click.option("--run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--format", "form", type=click.Choice(FORMATS), default="text")
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--fail-on", type=click.Choice(FAIL_ON), default="warning")
@click.option("--verbose", "-v", is_flag=True)
@global_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    function: str,
    run: Path | None,
    form: str,
    output: Path | None,
    fail_on: str,
    verbose: bool,
) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.store import Run, RunWriter

    if run is not None:
        Run.open(run)
    given = _returned(function, _found(function))
    from lossdoctor.preflight import check

    known = inspect.signature(check).parameters
    if strange := [str(name) for name in given if name not in known]:
        raise UsageError(
            mismatch(
                f"{function} returns the arguments of lossdoctor.preflight.check.",
                ", ".join(known),
                ", ".join(strange),
                "rename or leave out what is not among them",
            )
        )
    diagnosis = check(**given)
    if run is not None:
        with RunWriter(run, resume=True) as writer:
            for told in diagnosis.events():
                writer.event("preflight", **told)
    deliver([diagnosis], form, output, settings(ctx), verbose=verbose)
    ctx.exit(exit_code([diagnosis], fail_on))


def _found(name: str) -> Callable[[], Any]:
    """The function of the user's own module, which is looked for in the current folder, too."""
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UsageError(mismatch("preflight runs one function.", _FORM, repr(name), "name both, with a colon between"))
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a script without a guard that reads its own arguments
        got = f"{type(error).__name__}: {error}"
        todo = "keep what runs under if __name__ == '__main__', and call it from the folder of the module"
        raise UsageError(mismatch(f"{module} cannot be imported.", "a module that imports", got, todo)) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        got = "nothing of that name" if found is None else type(found).__name__
        raise UsageError(mismatch(f"{name} is no function.", _FORM, got, "define it at the top of the module"))
    function: Callable[[], Any] = found
    return function


def _returned(name: str, function: Callable[[], Any]) -> Mapping[str, Any]:
    """What the function returns. A mistake in it is told as a sentence."""
    try:
        given = function()
    except Exception as error:
        got = f"{type(error).__name__}: {error}"
        raise UsageError(
            mismatch(f"{name} raised an error.", "a mapping of arguments", got, "call it once by hand")
        ) from error
    if not isinstance(given, Mapping):
        expected = "a mapping, such as dict(sampler=sampler, z0=z0, z1=z1)"
        raise UsageError(
            mismatch(f"{name} returns the arguments.", expected, type(given).__name__, "end it with return dict(...)")
        )
    return given
