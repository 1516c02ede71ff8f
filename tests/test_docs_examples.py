"""Every Python block of README and docs runs, page by page, in one world: what the pages call model, loader, z0, ...

A page is one program: its blocks share their names, in order. A name that a page does not make itself comes from WORLD.
"""

from __future__ import annotations

import ast
import copy
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor import exchange
from lossdoctor.losses import gaussian_kl

ROOT = Path(__file__).parent.parent
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TERMINAL = re.compile(r"^```(?:console|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOO_LONG = {
    "ablate": "trains script after script: tests/ablate",
    "serve": "ends when it is stopped: tests/live",
    "watch": "ends with the run: tests/cli/test_watch.py",
}
"""Commands of the pages that are not run here, and where they are."""
SHOWN = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = [path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")]
ELSEWHERE = ("trackers.md", "plugins.md")  # what they need is set up in test_recipes.py and test_plugins.py
FOUND = sorted(path for path in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")] if path.name not in ELSEWHERE)
WEIGHTS = {"flow": 1.0, "kl": 0.01, "dino": 0.1}


class Model(nn.ModuleDict):
    """The model the pages speak of: a condition to z0, and a flow from there to z1."""

    def __init__(self) -> None:
        super().__init__(
            {
                "text": nn.Embedding(8, 8),
                "z_head": nn.Linear(8, 4),
                "flow_head": nn.Linear(2 + 1 + 8, 2),
                "dino_head": nn.Linear(2, 16),
            }
        )

    def velocity(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self["flow_head"](torch.cat([x, t.reshape(-1, 1).expand(len(x), 1), self["text"](cond)], -1))

    def losses(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        z1, cond = batch
        mu, logvar = self["z_head"](self["text"](cond)).chunk(2, -1)
        z0 = mu + (logvar / 2).exp()
        x_t, v_target = (z0 + z1) / 2, z1 - z0
        flow = (self.velocity(x_t, torch.full((len(z0), 1), 0.5), cond) - v_target).square().mean()
        dino = -(teacher(z1).softmax(-1) * self["dino_head"](z0).log_softmax(-1)).sum(-1).mean()
        return {"flow": flow, "kl": gaussian_kl(mu, logvar, reduction="sum"), "dino": dino}


class Batch(tuple[Tensor, Tensor]):
    """Data and conditions of as many samples as it says it has."""

    def __len__(self) -> int:
        return len(self[0])


torch.manual_seed(0)
model = Model()
teacher = nn.Linear(2, 16).requires_grad_(False).eval()
z0, z1, t = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64, 1)
cond = torch.randint(7, (64,))
mu, logvar = 0.1 * torch.randn(64, 4), torch.zeros(64, 4)
v_target = z1 - z0


def sampler(velocity: Callable[..., Tensor], start: Tensor, cond: Any, steps: int) -> Tensor:
    x = start
    for k in range(steps):
        x = x + velocity(x, torch.full((len(x), 1), k / steps), cond) / steps
    return x


def flow_error(model: Model, batch: Batch, t: Tensor) -> Tensor:
    return (model.velocity(z1, t, cond) - v_target).square().mean(-1)


def accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator(cpu=True)


WORLD: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch,
    "nn": lambda: nn,
    "ld": lambda: ld,
    "lossdoctor": lambda: ld,
    "copy": lambda: copy,
    "args": lambda: SimpleNamespace(resume=None, seed=0),
    "model": lambda: model,
    "teacher": lambda: teacher,
    "ema": lambda: Model().requires_grad_(False),
    "heads": lambda: {"z_head": model["z_head"], "flow_head": model["flow_head"], "dino_head": model["dino_head"]},
    "optimizer": lambda: torch.optim.Adam(model.parameters(), lr=1e-3),
    "doctor": lambda: ld.Doctor(model, torch.optim.Adam(model.parameters(), lr=1e-3), every=1),
    "batch": lambda: Batch((z1, cond)),
    "loader": lambda: [Batch((z1, cond))] * 3,
    "losses": lambda: model.losses((z1, cond)),
    "losses_of": lambda: model.losses,
    "flow_error": lambda: flow_error,
    "weights": lambda: WEIGHTS,
    "z0": lambda: z0,
    "z1": lambda: z1,
    "t": lambda: t,
    "cond": lambda: cond,
    "null_cond": lambda: torch.full((64,), 7),
    "mu": lambda: mu,
    "logvar": lambda: logvar,
    "x_t": lambda: (1 - t) * z0 + t * z1,
    "v_target": lambda: v_target,
    "v_pred": lambda: 0.9 * v_target,
    "loss": lambda: (0.1 * v_target).square().mean(),
    "loss_kl": lambda: gaussian_kl(mu, logvar, reduction="sum"),
    "kl": lambda: lambda mu, logvar: gaussian_kl(mu, logvar, reduction="sum"),
    "teacher_logits": lambda: torch.randn(64, 16),
    "student_logits": lambda: torch.randn(64, 16),
    "target": lambda: lambda z0, z1, t: ((1 - t) * z0 + t * z1, z1 - z0),
    "sampler": lambda: sampler,
    "my_sampler": lambda: sampler,
    "accelerator": accelerator,
}
"""What the pages speak of without making it, each made when a page names it."""


def programs() -> list[Any]:
    """Every page with Python in it that is not one of the examples, which run on their own; a translation of a page
    whose code is that of the page is the same program."""
    pages, seen = [], set()
    for page in FOUND:
        blocks = PYTHON.findall(page.read_text(encoding="utf-8"))
        blocks = [block for block in blocks if not any(block.strip() in example for example in EXAMPLES)]
        code = "\n".join(ast.unparse(ast.parse(block)) for block in blocks)
        if blocks and "_build" not in page.parts and code not in seen:
            seen.add(code)
            pages.append(pytest.param(blocks, id=page.relative_to(ROOT).as_posix()))
    return pages


class Spelled(ast.NodeTransformer):
    """The dots in a loop stand for the code that computes the losses of a batch."""

    MEANT = "L_flow, L_kl, L_dino = (losses := losses_of(batch)).values()"

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant) and node.value.value is ...:
            return ast.copy_location(ast.parse(self.MEANT).body[0], node)
        return node


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run the pages read, runs/exp1: twenty steps, and a file of a second rank."""
    folder = tmp_path_factory.mktemp("docs") / "exp1"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with ld.Doctor(model, optimizer, run=folder, every=1) as doctor:
        for _ in range(20):
            x_t = (1 - t) * z0 + t * z1
            doctor.flow(model.velocity(x_t, t, cond), v_target, t, x_t=x_t, z0=z0, z1=z1)
            doctor.backward(model.losses((z1, cond)), WEIGHTS)
            optimizer.step()
            optimizer.zero_grad()
    shutil.copy(folder / "run.db", folder / "run.rank1.db")
    return folder


@pytest.mark.parametrize("blocks", programs())
def test_the_python_of_a_page_runs(
    blocks: list[str], recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,train/prior\n0,1.0\n1,0.5\n", encoding="utf-8")
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        tree = Spelled().visit(ast.parse(block))
        named = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        makes_a_doctor = any(node.id == "doctor" and isinstance(node.ctx, ast.Store) for node in named)
        asked = {node.id for node in named} - ({"doctor"} if makes_a_doctor else set())
        names |= {name: WORLD[name]() for name in asked & WORLD.keys() - names.keys()}
        shutil.rmtree("runs", ignore_errors=True)
        if "Run.open(" in block:
            shutil.copytree(recorded, "runs/exp1")
        exec(compile(ast.fix_missing_locations(tree), "page", "exec"), names)
        if isinstance(doctor := names.pop("doctor", None), ld.Doctor):
            doctor.close()
            failures = [event for event in doctor.run.events if event["kind"] == "failure"]
            assert failures == []


def test_the_page_to_copy_from_says_what_comes_out() -> None:
    """The comments in docs/functional.md: what each number is, or is near to."""
    names: dict[str, Any] = {}
    seen: dict[str, float] = {}
    for block in PYTHON.findall((ROOT / "docs" / "functional.md").read_text(encoding="utf-8")):
        exec(compile(block, "functional", "exec"), names)
        seen |= {key: float(value) for key, value in names["told"].items()}
    assert seen["kl/ratio"] == pytest.approx(1 / 16, rel=1e-5)
    assert seen["kl/beta_per_dim"] == pytest.approx(1e-2, rel=1e-5)
    assert seen["grad_share/a"] + seen["grad_share/b"] == pytest.approx(1, abs=1e-5)
    assert seen["grad_weighted/b"] < 0.05 * seen["grad/total"]
    assert 0.7 < seen["flow/ode_order"] < 1.3
    assert seen["ent/teacher_mi"] > 0
    assert names["z1_hat"].shape == names["z0"].shape


# The first five minutes


def test_the_first_finding_is_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both programs of docs/start.md, with and without the mistake, say what the page says, up to digits."""
    from click.testing import CliRunner

    from lossdoctor.cli import main

    page = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    shown = "\n".join(SHOWN.findall(page))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    wrong = (ROOT / "examples" / "first_finding.py").read_text(encoding="utf-8")
    line = '    student = model["dino_head"](z0)\n'
    assert f"    {line}" in wrong
    right = wrong.replace(f"    {line}", line).replace("runs/first", "runs/second")
    monkeypatch.chdir(tmp_path)
    for program, run, code in ((wrong, "runs/first", 1), (right, "runs/second", 0)):
        exec(compile(program, run, "exec"), {})
        result = CliRunner(env={"LC_ALL": "C", "COLUMNS": "80"}).invoke(main, ["--no-color", "check", run])
        assert result.exit_code == code
        told = "\n".join(text.rstrip() for text in result.output.splitlines())
        assert without_digits(told).strip() in without_digits(shown), told
        if code:
            [first] = [block for block in SHOWN.findall(readme) if "check runs/first" in block]
            assert without_digits(first.partition("check runs/first")[2]).strip() in without_digits(told)


@pytest.fixture(scope="module")
def place(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the commands of the pages speak of."""
    folder = tmp_path_factory.mktemp("commands")
    for name in ("exp1", "exp2", "first", "second"):
        shutil.copytree(recorded, folder / "runs" / name)
    exchange.export(ld.Run.open(recorded), folder / "tb", format="tensorboard")
    (folder / "lightning_logs" / "version_0").mkdir(parents=True)
    for log in ("log.csv", "lightning_logs/version_0/metrics.csv"):
        rows = "".join(f"{step},{1 / (step + 1)},{0.9**step}\n" for step in range(30))
        (folder / log).write_text(f"step,train/prior,head_a\n{rows}", encoding="utf-8")
    (toml,) = re.findall(
        r"```toml\n(.*?)```", (ROOT / "docs" / "import-export.md").read_text(encoding="utf-8"), re.DOTALL
    )
    (folder / "names.toml").write_text(toml, encoding="utf-8")
    for module, function in (("setup", "parts"), ("train", "preflight")):
        code = f"def {function}():\n    import torch\n    return {{'model': torch.nn.Linear(2, 2)}}\n"
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    return folder


def commands(page: Path) -> list[list[str]]:
    """What stands behind each "lossdoctor" of a page, but for commands that end only when they are told to."""
    lines = "".join(TERMINAL.findall(page.read_text(encoding="utf-8"))).splitlines()
    lines = [line.removeprefix("$ ").removeprefix("lossdoctor ") for line in lines if "lossdoctor " in line[:13]]
    return [words for line in lines if (words := shlex.split(line, comments=True))[0] not in TOO_LONG]


WITH_COMMANDS = [path for path in FOUND if "zh" not in path.as_posix() and commands(path)]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda path: path.name)
def test_the_commands_of_a_page_run(page: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the page; a translation has the same. Exit code 1 says that there are findings."""
    from click.testing import CliRunner

    from lossdoctor.cli import main

    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    for name in ("setup", "train"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for words in commands(page):
        result = CliRunner(env={"LC_ALL": "C", "COLUMNS": "80"}).invoke(main, words)
        assert result.exit_code in (0, 1), f"{words}\n{result.output}"
        assert result.exception is None or isinstance(result.exception, SystemExit), words


def test_every_example_and_every_block_is_run_by_somebody() -> None:
    """Python stands in no block that these tests do not see, and in no folder of examples that nobody runs."""
    pages = [path for path in ROOT.rglob("*.md") if not {".venv", "_build", "runs"} & set(path.parts)]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fences = re.findall(r"^[ \t]*(?:```|~~~)[ \t]*\{?(?:code-block\} )?(py\w*)", text, re.MULTILINE)
        assert len(fences) == len(PYTHON.findall(text)), f"{page}: begin each block with ```python at the left edge"
        assert not fences or page in FOUND or page.name in ELSEWHERE, f"{page}: nobody runs its blocks"
    outside = {path.relative_to(ROOT / "examples").parts[0] for path in (ROOT / "examples").rglob("*.py")}
    folders = {name for name in outside if not name.endswith(".py")}
    assert folders == {"plugin"}, "test_examples.py runs the files right in examples/, test_plugins.py the plugin"


def without_digits(text: str) -> str:
    return re.sub(r"\d+", "#", text)
