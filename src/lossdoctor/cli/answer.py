"""How a command that judges answers: in the form asked for, and with an exit code a script can act on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossdoctor.cli.folders import written
from lossdoctor.cli.options import Settings
from lossdoctor.messages import text

# numpy, and what needs it, is imported where it is used: `--help` must not wait for it.
if TYPE_CHECKING:
    from lossdoctor.diagnose import Diagnosis

FAIL_ON = ("error", "warning", "info", "never")


def deliver(diagnoses: Sequence[Diagnosis], form: str, output: Path | None, talk: Settings, *, verbose: bool) -> None:
    """Diagnoses as text or as one of `report.verdict.DOCUMENTS`, on the terminal or into a file."""
    if form == "text":
        from lossdoctor.report.verdict.text import Verdict

        if output is None:
            console = talk.console()
            for diagnosis in diagnoses:
                console.print(Verdict(diagnosis, talk.lang, verbose=verbose))
            return
        told = "\n".join(_as_text(diagnosis, talk, verbose=verbose) for diagnosis in diagnoses)
    else:
        from lossdoctor.report.verdict import DOCUMENTS

        told = DOCUMENTS[form](diagnoses, talk.lang)
    delivered(told, output, talk)


def delivered(told: str, output: Path | None, talk: Settings) -> None:
    """A finished text, on the terminal or into a file."""
    if output is None:
        click.echo(told, nl=False)
    else:
        written(output, told)
        click.echo(text("check.written", talk.lang, path=output), err=True)


def exit_code(diagnoses: Sequence[Diagnosis], fail_on: str, *, broken: bool = False) -> int:
    """0: nothing at or above `fail_on`. 1: findings. 2: something could not be read, or nothing could be judged."""
    if broken or not any(diagnosis.judged for diagnosis in diagnoses):
        return 2
    if fail_on == "never":
        return 0
    counting = FAIL_ON[: FAIL_ON.index(fail_on) + 1]
    return int(any(diagnosis.worst() in counting for diagnosis in diagnoses))


def _as_text(diagnosis: Diagnosis, talk: Settings, *, verbose: bool) -> str:
    import io

    from rich.console import Console

    from lossdoctor.report.verdict.text import Verdict

    page = io.StringIO()
    Console(file=page, no_color=True, width=100, highlight=False).print(Verdict(diagnosis, talk.lang, verbose=verbose))
    return page.getvalue()
