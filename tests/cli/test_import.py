"""`lossdoctor import`, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from lossdoctor.cli import main
from lossdoctor.exchange import FORMATS
from lossdoctor.messages import keys, text
from lossdoctor.store import Run

LOG = "step,loss,train/kl_loss,lr,note\n0,2.5,1.5,0.1,a\n10,nan,0.5,0.1,b\n,1,1,1,c\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("log.csv").write_text(LOG)


def call(*arguments: str) -> Result:
    return CliRunner(env={"LC_ALL": "C", "COLUMNS": "80"}).invoke(main, ["import", *arguments], prog_name="lossdoctor")


def refused(*arguments: str) -> str:
    before = sorted(path.name for path in Path().iterdir())
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert sorted(path.name for path in Path().iterdir()) == before, "nothing is made before all is known to be right"
    return result.output


def test_what_is_told() -> None:
    result = call("log.csv")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    table = [line.split() for line in lines if "->" in line]
    assert table == [["loss", "->", "loss/total"], ["train/kl_loss", "->", "loss/kl"]]
    assert "--no-guess" in lines[0]
    assert lines[-6:] == [
        "Read log.csv as csv, steps from the column step.",
        "Imported into runs/log: metrics 3, points 6, steps 0 to 10.",
        "Metrics with a name that rules know: 2. The others are kept; --map gives them such names.",
        "Left out: 1 rows without a whole number as their step.",
        "Left out: 2 values that are no single numbers, of note.",
        "Next: lossdoctor check runs/log",
    ]
    run = Run.open("runs/log")
    assert list(run) == ["loss/kl", "loss/total", "lr"]
    assert list(run["loss/kl"]) == [(0, 1.5), (10, 0.5)]


def test_a_log_without_loss_and_a_path_with_spaces() -> None:
    Path("my log.csv").write_text("step,x\n1,2\n")
    result = call("my log.csv", "--out", "a folder")
    assert "Nothing was lost." in result.output
    assert "No metric has a name that rules know" in result.output
    assert result.output.splitlines()[-1] == "Next: lossdoctor check 'a folder'"


def test_the_other_language() -> None:
    result = call("log.csv", "--lang", "zh-CN")
    assert result.exit_code == 0
    assert "指标 3 个，数据点 6 个，步数从 0 到 10" in result.output


def test_every_loss_has_its_words() -> None:
    """The codes of what is lost, as they stand in the code."""
    folder = Path(str(FORMATS["csv"].__file__)).parent  # type: ignore[attr-defined]
    code = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    codes = {part.split('"')[1] for part in code.split(".lost[")[1:]} | {"torn_line"}
    assert {f"import.lost.{one}" for one in codes} == {key for key in keys() if key.startswith("import.lost.")}


def test_the_help_names_every_format() -> None:
    for lang in ("en", "zh-CN"):
        assert all(name in text("cli.import.format", lang) for name in FORMATS)


def test_results_never_go_over_others() -> None:
    for expected in ("runs/log", "runs/log-2", "runs/log-3"):
        assert f"Imported into {expected}:" in call("log.csv").output
    assert "a new or empty folder" in refused("log.csv", "--out", "runs")
    assert "cannot be written" in refused("log.csv", "--out", "log.csv")
    Path("empty").mkdir()
    assert call("log.csv", "--out", "empty").exit_code == 0


def test_mappings() -> None:
    Path("map.toml").write_text('"lr" = "lr/all"\n"train/*" = "*"\n"other" = "x"\n')
    result = call("log.csv", "--out", "a", "--map-file", "map.toml", "--map", "train/kl_loss=loss/prior")
    assert result.exit_code == 0, result.output
    assert list(Run.open("a")) == ["loss/prior", "loss/total", "lr/all"]
    assert "The mapping of other was not used" in result.output
    result = call("log.csv", "--out", "b", "--no-guess", "--map", "train/*=*")
    assert list(Run.open("b")) == ["kl_loss", "loss", "lr"]
    assert "->" not in result.output


def test_what_could_be_two_things_is_asked() -> None:
    Path("two.csv").write_text("step,loss,train_loss\n1,2,3\n")
    result = call("two.csv")
    assert "each of loss, train_loss could be loss/total" in result.output
    assert "--map loss=loss/total" in result.output
    assert "-> loss/total" in " ".join(call("two.csv", "--map", "train_loss=other").output.split())


def test_kinds() -> None:
    assert call("log.csv", "--kind", "kl=other", "--kind", "loss/total=velocity", "--out", "a").exit_code == 0
    assert json.loads(Path("a/meta.json").read_text())["kinds"] == {"kl": "other", "total": "velocity"}
    assert "not a kind of loss" in refused("log.csv", "--kind", "kl=nonsense")
    told = refused("log.csv", "--kind", "dino=distill")
    assert "'kl', 'total'" in told
    assert "--map THEIRS=loss/dino" in told


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.csv"], "There is no log there"),
        (["log.csv", "--format", "excel"], "There is no such format"),
        (["log.csv", "--format", "trackio"], "cannot be read"),
        (["log.csv", "--run", "a"], "only one run"),
        (["log.csv", "--step", "stp"], "no such column"),
        (["log.csv", "--map", "loss"], "--map takes two names"),
        (["log.csv", "--map", "los=x"], "'loss'"),
        (["log.csv", "--map", "loss=lr"], "same name"),
        (["log.csv", "--map-file", "missing.toml"], "cannot read missing.toml"),
        (["log.csv", "--map-file", "log.csv"], "is not TOML"),
        (["log.csv", "--kind", "kl"], "--kind takes two names"),
        (["empty"], "is empty"),
        (["garbage"], "no log that can be read"),
        (["nested.toml"], "There are no numbers in it"),
        (["log.csv", "--map-file", "nested.toml"], "maps names to names"),
        ([], "Missing argument"),
        (["log.csv", "surplus"], "surplus"),
    ],
    ids=" ".join,
)
def test_wrong_use_ends_with_2(arguments: list[str], said: str) -> None:
    Path("empty").write_bytes(b"")
    Path("garbage").write_bytes(bytes(range(128, 256)))
    Path("nested.toml").write_text("[train]\nkl = 'loss/kl'\n")
    assert said in refused(*arguments)


def test_a_last_part_that_is_cut_off_is_told() -> None:
    Path("cut.csv").write_text("step,loss\n1,2.5\n2,2.25\n3,2.1")
    result = call("cut.csv")
    assert result.exit_code == 0
    assert "the number may be cut off" in result.output
    assert len(Run.open("runs/cut")["loss/total"]) == 2


def test_names_of_strangers_are_only_text() -> None:
    names = ["<script>alert(1)</script>", "[bold red]kl_loss", "\x1b[31mkl\x07", "a\nb", "loss/\u6d41"]
    rows = [{"step": 1, **dict.fromkeys(names, 1.0), "[red]\x1bnote": "x"}]
    Path("log.jsonl").write_text(json.dumps(rows[0]))
    result = call("log.jsonl")
    assert result.exit_code == 0
    assert "\x1b" not in result.output
    assert "[bold red]kl_loss" in result.output
    assert sorted(Run.open("runs/log")) == sorted([*names[:1], "loss/[bold red]kl", *names[2:]])
