"""A run that is named on the command line: a folder of ours, or the log of another program, read for this once.

Who has only a folder of TensorBoard gets a report from it in one command. What has to be chosen or mapped is
`lossdoctor import`'s, which keeps what it read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossdoctor.cli.options import Settings
from lossdoctor.errors import RunError, UsageError
from lossdoctor.messages import text
from lossdoctor.report.wording import visible

# numpy and the formats are imported where they are used: `--help` must not wait for them.
if TYPE_CHECKING:
    from lossdoctor.store import Run

OURS = "run*.db"


def opened(path: Path, talk: Settings) -> Run:
    """The run at `path`. Of a log it is said on standard error as what it was read, and which names were guessed.

    Raises RunError for what is neither, and for a log that cannot be read without a choice.
    """
    from lossdoctor.store import Run

    if not path.exists() or (path.is_dir() and any(path.glob(OURS))) or path.match(OURS):
        return Run.open(path)
    from lossdoctor.exchange import as_run, read, recognise

    try:
        recognise(path)
    except UsageError:
        return Run.open(path)  # whose error says what a run is
    try:
        imported = read(path)
    except UsageError as error:
        raise RunError(str(error)) from error
    click.echo(text("opening.log", talk.lang, path=path, format=imported.format), err=True)
    if imported.renaming.guessed:
        click.echo(text("opening.names", talk.lang), err=True)
    for theirs, ours in imported.renaming.guessed.items():
        click.echo(f"  {visible(theirs)} -> {ours}", err=True)
    return as_run(imported)
