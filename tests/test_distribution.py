"""What is handed out: the wheel and the sdist, and the wheel where nothing but the core dependencies is installed.

The environments are made of links into the one the tests run in, so that nothing is downloaded: a virtual environment
that sees, of all that is installed there, only the distributions that the metadata of the wheel ask for, in turn.
`make extras` sets LOSSDOCTOR_INSTALL: then pip makes them from nothing, one for the core and one for each extra.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lossdoctor

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = sorted(set(PROJECT["optional-dependencies"]) - {"dev"})
FRESH = bool(os.environ.get("LOSSDOCTOR_INSTALL"))
SINK = "try: lossdoctor.sinks.{0}(None)\nexcept lossdoctor.errors.UsageError: pass\nelse: raise AssertionError"
USES = {
    "accelerate": "from accelerate.tracking import GeneralTracker; import lossdoctor.integrations.accelerate",
    "demo": "from lossdoctor.reference.data import load_digits; assert len(load_digits()) == 1797",
    "encoders": "from diffusers import AutoencoderKL; from transformers import Dinov2Model; from PIL import Image",
    "lightning": "from lossdoctor.integrations.lightning import LossDoctorCallback; LossDoctorCallback()",
    "mlflow": SINK.format("MLflow"),
    "ode": "import torch; from lossdoctor.flow.solvers import dopri5; dopri5(lambda x, t: -x, torch.ones(2, 2))",
    "serve": "import lossdoctor.live.app",
    "swanlab": SINK.format("SwanLab"),
    "tensorboard": "sink = lossdoctor.sinks.TensorBoard('tb'); sink.open({}); sink.close()",
    "torchjd": "from torchjd.aggregation import MGDAWeighting as W; lossdoctor.treat.balancer(W())",
    "trackio": SINK.format("Trackio"),
    "transformers": "from lossdoctor.integrations.transformers import LossDoctorCallback",
    "wandb": SINK.format("WandB"),
}
"""What an extra is for, beyond that its packages can be imported."""


def ran(command: list[str | Path], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": "/usr/bin:/bin", "PYTHONUTF8": "1", "LC_ALL": "C", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**clean, **environment})


def build(source: Path, target: Path, *kinds: str) -> None:
    asked = [part for kind in kinds for part in ("-t", kind)]
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target), *asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=source)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel, the sdist, and the wheel that the sdist gives."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder, "wheel", "sdist")
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    build(source, folder / "again", "wheel")
    (again,) = (folder / "again").glob("*.whl")
    return {"wheel": wheel, "sdist": sdist, "again": again}


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_is_the_package_and_nothing_else(built: dict[str, Path]) -> None:
    source = ROOT / "src"
    expected = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in (source / "lossdoctor").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = contents(built["wheel"])
    info = f"lossdoctor-{lossdoctor.__version__}.dist-info/"
    assert {name: data for name, data in found.items() if not name.startswith(info)} == expected
    about = {name.removeprefix(info) for name in found if name.startswith(info)}
    licences = {"licenses/LICENSE", "licenses/THIRD_PARTY_LICENSES"}
    assert about == {"METADATA", "WHEEL", "RECORD", "entry_points.txt", *licences}
    for kept in ("py.typed", "messages/en/rules.json", "messages/zh-CN/rules.json", "report/page/uplot/LICENSE"):
        assert f"lossdoctor/{kept}" in found
    assert b"uPlot" in found[f"{info}licenses/THIRD_PARTY_LICENSES"]
    assert found[f"{info}WHEEL"].splitlines()[-1] == b"Tag: py3-none-any"


def test_the_sdist_gives_the_same_wheel_and_holds_no_leftovers(built: dict[str, Path]) -> None:
    assert contents(built["again"]) == contents(built["wheel"])
    with tarfile.open(built["sdist"]) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames()]
    assert {"LICENSE", "README.md", "pyproject.toml", "tests/test_distribution.py"} <= set(names)
    leftovers = ("__pycache__", ".pyc", "_cache/", "runs/", "dist/", ".venv", "docs/_build", ".hypothesis")
    assert [name for name in names if any(left in name for left in leftovers)] == []


def test_what_is_tested_as_the_lowest_is_what_is_declared() -> None:
    texts = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    lowest = {
        canonicalize_name(one.name): Version(bound.version).release
        for one in map(Requirement, texts)
        for bound in one.specifier
        if bound.operator == ">="
    }
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.partition("#")[0].strip().split("==") for line in lines if "==" in line]
    tested = {canonicalize_name(name): Version(version).release for name, version in pinned}
    assert {name: release[: len(lowest[name])] for name, release in tested.items()} == {n: lowest[n] for n in tested}
    assert {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]} <= set(tested)


# Environments


def needed(requirements: Iterable[str], extra: str = "") -> set[str]:
    """The names of all distributions that these requirements ask for, in turn, on this machine."""
    found: set[str] = set()
    waiting = [(Requirement(text), extra) for text in requirements]
    while waiting:
        one, asked_by = waiting.pop()
        name = canonicalize_name(one.name)
        if name in found or (one.marker is not None and not one.marker.evaluate({"extra": asked_by})):
            continue
        found.add(name)
        waiting += [(Requirement(text), part) for text in metadata.requires(name) or () for part in (*one.extras, "")]
    return found


def link(names: Iterable[str], target: Path) -> None:
    """Links to everything that distributions have in site-packages."""
    target.mkdir(exist_ok=True, parents=True)
    for name in sorted(names):
        installed = metadata.distribution(name)
        for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
            if not (target / top).exists():
                (target / top).symlink_to(Path(str(installed.locate_file(top))))


def empty(home: Path) -> Path:
    """A virtual environment without anything; the folder of its programs."""
    assert ran([sys.executable, "-m", "venv", "--without-pip", home], ROOT).returncode == 0
    return home / "bin"


def install(programs: Path, *asked: str | Path) -> None:
    """By pip, into a virtual environment."""
    pip = [sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-compile"]
    done = subprocess.run([*pip, *asked], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def clean(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, installed by pip, and what it cannot do without."""
    programs = empty(tmp_path_factory.mktemp("clean") / "venv")
    if FRESH:
        install(programs, "-c", "constraints.txt", built["wheel"])
    else:
        link(needed(PROJECT["dependencies"]), site_packages(programs))
        install(programs, "--no-deps", "--no-index", built["wheel"])
    return programs


def site_packages(programs: Path) -> Path:
    (site,) = programs.parent.glob("lib/python*/site-packages")
    return site


@pytest.mark.skipif(not FRESH, reason="pip asks the index for what the sdist is built with: make extras")
def test_the_sdist_installs_by_pip_alone(built: dict[str, Path], clean: Path, tmp_path: Path) -> None:
    programs = empty(tmp_path / "venv")
    install(programs, "--no-deps", built["sdist"])
    (site_packages(programs) / "core.pth").write_text(f"{site_packages(clean)}\n")
    done = ran([programs / "lossdoctor", "--version"], tmp_path)
    assert done.stdout.split()[-1] == lossdoctor.__version__, done.stderr
    code = "import lossdoctor; print(lossdoctor.__file__)"
    assert str(tmp_path) in ran([programs / "python", "-c", code], tmp_path).stdout


def test_every_module_can_be_imported_with_the_core_alone(clean: Path, tmp_path: Path) -> None:
    optional = sorted({Requirement(text).name for extra in EXTRAS for text in PROJECT["optional-dependencies"][extra]})
    code = f"""
import importlib, importlib.metadata, pkgutil, sys, lossdoctor
from lossdoctor.errors import MissingExtraError
assert lossdoctor.__file__.startswith(sys.prefix), lossdoctor.__file__
here = {{one.metadata["Name"] for one in importlib.metadata.distributions()}}
assert not here & set({optional}), here
for module in pkgutil.walk_packages(lossdoctor.__path__, "lossdoctor."):
    if not module.name.endswith("__main__"):
        try: importlib.import_module(module.name)
        except MissingExtraError as error: print(module.name, error)
        except ModuleNotFoundError as error:
            if not module.name.startswith("lossdoctor.live.") or error.name != "starlette": raise  # `serve` tells
"""
    done = ran([clean / "python", "-W", "error", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    doors = [line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith("lossdoctor.")]
    assert {door for door, _ in doors} <= {"lossdoctor.integrations.lightning", "lossdoctor.integrations.transformers"}
    assert all(door.split(".")[-1] in told for door, told in doors), "the error names the extra"


def test_it_is_used_from_beginning_to_end_with_the_core_alone(clean: Path, tmp_path: Path) -> None:
    training = """
import torch, lossdoctor as ld
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters())
with ld.Doctor(model, optimizer, run="run", every=1, kinds={"flow": "velocity", "own": "other"}) as doctor:
    for step in range(25):
        x = torch.randn(16, 4)
        v = model(x)
        ld.flow(v, -x, torch.rand(16))
        doctor.backward({"flow": (v + x).square().mean(), "own": v.abs().mean()}, weights={"own": 0.1})
        optimizer.step()
        optimizer.zero_grad()
assert "flow/cos" in doctor.ret and doctor.diagnose().judged
"""
    (tmp_path / "log.csv").write_text("step,loss\n" + "".join(f"{n},{1 / (n + 1)}\n" for n in range(50)))
    done = ran([clean / "python", "-W", "error", "-c", training], tmp_path)
    assert done.returncode == 0, done.stderr
    for line in (
        "--help",
        "explain",
        "explain GRD102",
        "check run --fail-on never",
        "report run -o report.html",
        "export run -o run.csv",
        "import log.csv --out imported --map loss=loss/flow",
        "check imported --fail-on never",
    ):
        done = ran([clean / "lossdoctor", *line.split()], tmp_path)
        assert done.returncode in ((0, 2) if "imported" in line else (0,)), f"{line}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr


def test_what_needs_an_extra_names_it(clean: Path, tmp_path: Path) -> None:
    done = ran([clean / "lossdoctor", "demo"], tmp_path)
    assert done.returncode == 2
    assert "pip install 'lossdoctor[demo]'" in done.stderr
    code = """
import torch, lossdoctor
from lossdoctor.errors import MissingExtraError
from lossdoctor.flow.solvers import dopri5
def tensorboard(): lossdoctor.sinks.TensorBoard("tb").open({})
def ode(): dopri5(lambda x, t: -x, torch.ones(2, 2))
for use in (tensorboard, ode):
    try: use()
    except MissingExtraError as error: assert f"lossdoctor[{use.__name__}]" in str(error), error
    else: raise AssertionError(use)
"""
    done = ran([clean / "python", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_is_for(built: dict[str, Path], clean: Path, extra: str, tmp_path: Path) -> None:
    asked = PROJECT["optional-dependencies"][extra]
    programs, found = clean, {}
    if FRESH:
        programs = empty(tmp_path / "venv")
        install(programs, "-c", "constraints.txt", f"lossdoctor[{extra}] @ {built['wheel'].as_uri()}")
    else:
        link(needed(asked) - needed(PROJECT["dependencies"]), tmp_path / "extra")
        found = {"PYTHONPATH": str(tmp_path / "extra")}
    tops = {Requirement(text).name: top_level(Requirement(text).name) for text in asked}
    code = f"import lossdoctor, {', '.join(sorted(tops.values()))}\n{USES.get(extra, '')}"
    done = ran([programs / "python", "-c", code], tmp_path, **found)
    assert done.returncode == 0, done.stderr


def top_level(name: str) -> str:
    """The module that a distribution is imported by."""
    names = [module for module, owners in metadata.packages_distributions().items() if name in owners]
    return min((one for one in names if not one.startswith("_")), key=len)
