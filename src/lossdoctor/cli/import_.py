"""`lossdoctor import`: a run of another program, as a run that rules can judge."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lossdoctor.cli.folders import chosen, next_free
from lossdoctor.cli.options import global_options, settings
from lossdoctor.errors import UsageError, mismatch
from lossdoctor.kinds import KINDS, checked_kinds

# numpy and the formats are imported where they are used: `lossdoctor import --help` must not wait for them.
if TYPE_CHECKING:
    from lossdoctor.exchange import Imported

HOME = Path("runs")


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path), metavar="SOURCE")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR")
@click.option("--format", "form", metavar="NAME")
@click.option("--run", metavar="NAME")
@click.option("--step", metavar="NAME")
@click.option("--map", "pairs", multiple=True, metavar="THEIRS=OURS")
@click.option("--map-file", type=click.Path(path_type=Path), metavar="FILE")
@click.option("--no-guess", is_flag=True)
@click.option("--kind", "kinds", multiple=True, metavar="LOSS=KIND")
@global_options
@click.pass_context
def command(
    ctx: click.Context,
    *,
    source: Path,
    out: Path | None,
    form: str | None,
    run: str | None,
    step: str | None,
    pairs: tuple[str, ...],
    map_file: Path | None,
    no_guess: bool,
    kinds: tuple[str, ...],
) -> None:
    """Its help text is in the message catalogues."""
    from lossdoctor.cli.imported import tell
    from lossdoctor.exchange import read, write_run

    told = _pairs(pairs, "--map", "train/kl=loss/kl")
    mapping = {**_from_file(map_file), **told}
    given = _kinds(kinds)
    imported = read(source, format=form, run=run, step=step, mapping=mapping, guess=not no_guess)
    _check_used(imported, told)
    _check_losses(imported, given)
    folder = next_free(HOME / _name(run or imported.source)) if out is None else chosen(out)
    try:
        written = write_run(imported, folder, meta={"kinds": given})
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()  # only an empty one goes
    tell(settings(ctx).console(), imported, written, folder, settings(ctx).lang)


def _pairs(given: Sequence[str], option: str, example: str) -> dict[str, str]:
    """Texts such as THEIRS=OURS; of several "=" the last one divides, for theirs may be any text."""
    pairs = {}
    for one in given:
        left, equals, right = one.rpartition("=")
        if not equals:
            raise UsageError(
                mismatch(f"{option} takes two names.", f"such as {option} {example}", one, "write both, with = between")
            )
        pairs[left] = right
    return pairs


def _from_file(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    todo = 'write a line such as "train/kl" = "loss/kl" for each metric'
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(mismatch(f"cannot read {path}", "a TOML file", reason, "check the path")) from error
    except ValueError as error:
        raise UsageError(mismatch(f"{path} is not TOML", "TOML in UTF-8", str(error), todo)) from error
    wrong = [name for name, ours in found.items() if not isinstance(ours, str)]
    if wrong:
        raise UsageError(mismatch(f"{path} maps names to names.", "texts", f"{wrong[0]} = {found[wrong[0]]!r}", todo))
    return found


def _kinds(given: Sequence[str]) -> dict[str, str]:
    return checked_kinds(
        {loss.removeprefix("loss/"): kind for loss, kind in _pairs(given, "--kind", f"kl={KINDS[1]}").items()}
    )


def _name(source: str) -> str:
    """A name for the folder of the run, from that of its source."""
    return Path(source).stem or "imported"


def _check_used(imported: Imported, told: dict[str, str]) -> None:
    """A mapping on the command line that maps nothing is a slip of the finger; in a file it may serve other runs."""
    from lossdoctor.exchange.source import near

    for theirs in imported.renaming.unmatched:
        if theirs in told:
            raise UsageError(
                mismatch(
                    "The log has no such metric.",
                    f"one such as {near(theirs, imported.run)}",
                    f"--map {theirs}={told[theirs]}",
                    "correct the name, or leave the mapping out",
                )
            )


def _check_losses(imported: Imported, kinds: dict[str, str]) -> None:
    from lossdoctor.exchange.source import listed

    losses = sorted(name.removeprefix("loss/") for name in imported.names.values() if name.startswith("loss/"))
    for loss, kind in kinds.items():
        if loss not in losses:
            raise UsageError(
                mismatch(
                    "The log has no such loss.",
                    f"one of {listed(losses)}" if losses else "a metric called loss/NAME, which the log has none of",
                    f"--kind {loss}={kind}",
                    f"correct the name, or make a metric a loss: --map THEIRS=loss/{loss}",
                )
            )
