"""On several ranks: numbers of the global batch, the same training bit for bit, and nobody waits for ever."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lossdoctor as ld
from lossdoctor.rules import Finding

PROGRAM = Path(__file__).with_name("ranks_program.py")
GLOBAL = ("grad", "descent/", "loss/", "step/", "weight/", "lr/", "wd/", "ema/")
pytestmark = pytest.mark.timeout(600)

spec = importlib.util.spec_from_file_location("ranks_program", PROGRAM)
assert spec is not None
assert spec.loader is not None
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)


def launch(folder: Path, size: int, names: list[str]) -> None:
    """All programs that can run, one after the other, in `size` processes; a deadlock ends as a failure."""
    command = [sys.executable, str(PROGRAM), str(size), str(folder), *filter(program.possible, names)]
    sound = subprocess.run(command, timeout=program.SECONDS + 30).returncode == 0
    assert sound, "\n".join(path.read_text() for path in sorted(folder.glob("told.*")))


class Outcome:
    """What the programs left behind."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size

    def of(self, name: str, rank: int = 0) -> dict[str, Any]:
        self._ran(name)
        return torch.load(self.folder / f"{name}.{rank}.pt", weights_only=True)

    def run(self, name: str, rank: int = 0) -> ld.Run:
        self._ran(name)
        return ld.Run.open(self.folder / name, rank=rank)

    def _ran(self, name: str) -> None:
        if not program.possible(name):
            pytest.skip("this torch shards parameters on GPUs only")

    def events(self, name: str, kind: str, rank: int = 0) -> list[dict[str, Any]]:
        return [event for event in self.run(name, rank).events if event["kind"] == kind]


def launched(size: int, names: list[str]) -> Callable[[pytest.TempPathFactory], Outcome]:
    """All that `names` leave behind; when tests run in several processes, the first that needs it launches it."""

    @pytest.fixture(scope="module")
    def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
        base = tmp_path_factory.getbasetemp()
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        folder = shared / f"{names[0]}-{size}"
        with (shared / f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                folder.mkdir()
                launch(folder, size, names)
                (folder / "sound").touch()
        assert (folder / "sound").exists(), f"{folder.name} failed in another process of the tests"
        return Outcome(folder, size)

    return outcome


TROUBLE = [
    *("schedules", "only_rank_0", "fails", "leaves", "hybrid"),
    *("in_backward", "sharded_in_backward", "sharded_out_of_step"),
]
SHARDED = [name for name, setting in program.PROGRAMS.items() if setting.get("shard") and name not in TROUBLE]
SKETCHED = ["sketched", "sketched_no_sync", "sketched_unused", "sketched_by_hand"]
ALIKE = ["own_draws", "grid", "same_data", "same_noise", "same_draws", "outside", "own_teacher"]
BALANCED = [name for name, setting in program.PROGRAMS.items() if "balance" in setting]
SOUND = [name for name in program.PROGRAMS if name not in (*TROUBLE, *SHARDED, *SKETCHED, *ALIKE, *BALANCED)]
two = launched(2, [name for name in program.PROGRAMS if name not in TROUBLE])
trouble = launched(2, TROUBLE)
four = launched(4, ["plain", "no_sync", "sharded"])


def alone(name: str, folder: Path) -> list[dict[str, float]]:
    """What one process records on the global batch."""
    return program.train(folder / "alone", 0, 1, **program.settings(name, 0))["rets"]


def assert_neutral(outcome: Outcome, name: str) -> None:
    for rank in range(outcome.size):
        found = outcome.of(name, rank)
        for step, (off, on) in enumerate(zip(found["off"]["states"], found["on"]["states"], strict=True)):
            for a, b in zip(off, on, strict=True):
                assert (a is None and b is None) or torch.equal(a, b), f"{name}, rank {rank}, step {step}"


def assert_global(outcome: Outcome, name: str, folder: Path, first: int = 0) -> None:
    wanted, each = alone(name, folder), [outcome.of(name, r)["on"]["rets"] for r in range(outcome.size)]
    for step in range(first, program.STEPS):
        keys = {key for key in wanted[step] if key.startswith(GLOBAL)}
        assert keys >= {"grad/flow", "grad/total", "loss/flow", "grad_share/flow"}
        for rank, rets in enumerate(each):
            assert keys <= rets[step].keys()
            for key in sorted(keys):
                assert rets[step][key] == pytest.approx(wanted[step][key], rel=2e-4, abs=2e-6), (step, rank, key)
                assert rets[step][key] == each[0][step][key], f"{key} is not the same number on every rank"


@pytest.mark.parametrize("name", [name for name in program.PROGRAMS if name not in (*TROUBLE, *BALANCED)])
def test_training_is_bit_for_bit_the_same(two, name) -> None:
    assert_neutral(two, name)
    assert two.of(name)["warnings"] == []


@pytest.mark.parametrize("name", ["plain", "inner", "unused", "no_sync", "views", "synced", "by_hand"])
def test_numbers_are_those_of_the_global_batch(two, name, tmp_path) -> None:
    assert_global(two, name, tmp_path)


@pytest.mark.parametrize("name", ["sketched", "sketched_no_sync", "sketched_unused"])
def test_sketches_are_those_of_the_global_batch(two, name, tmp_path) -> None:
    """Signs are the same on every rank and in every run, so that the estimates are the same numbers."""
    assert_global(two, name, tmp_path)
    told = two.run(name).meta
    assert told["gradients"] == "sketch"
    assert set(told["sketch"]["modules"]) >= {"body", "flow_head"}


def test_a_sketch_is_near_the_exact_gram_of_the_global_batch_and_takes_one_collective(two, tmp_path) -> None:
    exact = program.train(tmp_path, 0, 1, width=160)["rets"]
    found = two.of("sketched")["on"]
    for step, wanted in enumerate(exact):
        for name in ("a", "b", "flow"):
            assert found["rets"][step][f"grad/{name}"] == pytest.approx(wanted[f"grad/{name}"], rel=0.15)
            assert found["rets"][step][f"grad_share/{name}"] == pytest.approx(wanted[f"grad_share/{name}"], abs=0.1)
        for pair in ("a|b", "a|flow", "b|flow"):
            assert found["rets"][step][f"grad_cos/{pair}"] == pytest.approx(wanted[f"grad_cos/{pair}"], abs=0.15)
    assert [step for step, _ in found["sent"]] == list(range(program.STEPS))
    trained = sum(p.numel() for p in program.Net(width=160).parameters() if p.requires_grad)
    assert max(length for _, length in found["sent"]) < len(program.WEIGHTS) * trained / 2


def test_of_sketches_averaged_by_hand_the_lengths_are_estimates_too(two, tmp_path) -> None:
    exact = program.train(tmp_path, 0, 1, width=160)["rets"]
    for step, wanted in enumerate(exact):
        found, other = (two.of("sketched_by_hand", rank)["on"]["rets"][step] for rank in (0, 1))
        for name in ("a", "b", "flow", "total"):
            assert found[f"grad/{name}"] == pytest.approx(wanted[f"grad/{name}"], rel=0.3), (step, name)
            assert found[f"grad/{name}"] == other[f"grad/{name}"]


@pytest.mark.parametrize("name", ["static", "static_inner"])
def test_a_static_graph_is_never_probed_in_its_first_iteration(two, name, tmp_path) -> None:
    assert "grad/total" not in two.of(name)["on"]["rets"][0]
    assert [event["step"] for event in two.events(name, "passed_over")] == [0]
    assert_global(two, name, tmp_path, first=1)


@pytest.mark.parametrize("name", ["plain", "no_sync", "sharded"])
def test_four_ranks(four, name, tmp_path) -> None:
    assert_neutral(four, name)
    assert_global(four, name, tmp_path)


def test_a_loss_that_one_rank_does_not_have_counts_as_zero_there(two) -> None:
    first, second = (two.of("uneven", rank)["on"]["rets"][3] for rank in (0, 1))
    assert first["grad_share/a"] + first["grad_share/b"] + first["grad_share/flow"] == pytest.approx(1.0, abs=1e-4)
    assert [first[key] for key in first if key.startswith("grad")] == [second[k] for k in first if k.startswith("grad")]


@pytest.mark.parametrize("name", ["sharded", "resharded", "sharded_turns", "sharded_micro"])
def test_sharded_parameters(two, name, tmp_path) -> None:
    assert_global(two, name, tmp_path)
    last = two.of(name)["on"]["rets"][-1].keys()
    assert last >= {"descent/a", "step/a_head_update_ratio", "grad/clip_ratio", "flow/time_ratio", "lr/a_head"}
    assert ("ema/momentum" in last) == ("ema" in program.PROGRAMS[name])
    assert two.run(name).meta["ranks"]["steps"] == "global"
    assert max(length for _, length in two.of(name)["on"]["sent"]) < 250, "numbers about vectors, never vectors"


def test_sharded_parameters_in_half_precision(two, tmp_path) -> None:
    """One process trains in full precision; the field is asked in the precision it was trained in."""
    for wanted, found in zip(alone("sharded_half", tmp_path), two.of("sharded_half")["on"]["rets"], strict=True):
        for key in ("grad/flow", "grad/total", "descent/flow", "step/a_head_rms_update"):
            assert found[key] == pytest.approx(wanted[key], rel=0.03)
            assert found[key] != wanted[key]
        assert found["flow/field_mismatch"] == 0.0


def whole(outcome: Outcome, name: str, step: int) -> Any:
    """The model that the ranks hold in parts, after a step."""
    model = program.Net()
    parts = [outcome.of(name, rank)["on"]["states"][step] for rank in range(outcome.size)]
    joined = {key: torch.cat([part[i] for part in parts]) for i, key in enumerate(model.state_dict())}
    model.load_state_dict(joined)
    return model


@pytest.mark.parametrize("name", ["sharded", "resharded"])
def test_a_sharded_field_answers_as_the_whole_one_does(two, name) -> None:
    for rank in (0, 1):
        model = whole(two, name, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with ld.Doctor(model, optimizer, every=1, gradients="off", strict=True) as doctor:
            doctor.load_state_dict({"step": 3})  # whose private randomness is drawn
            x, t = program.batch(3, slice(6 * rank, 6 * rank + 6))
            doctor.backward(program.losses(model, x, t, "ab"))
            optimizer.step()
            doctor.close(rollout=False)
        wanted = {key: value for key, value in doctor.ret.items() if key.startswith("flow/")}
        assert wanted.keys() >= {"flow/time_ratio", "flow/cond_ratio", "flow/time_reversal", "flow/field_mismatch"}
        found = two.of(name, rank)["on"]["rets"][3]
        assert {key: found[key] for key in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_a_sharded_field_is_integrated_as_the_whole_one(two) -> None:
    for rank in (0, 1):
        model = whole(two, "sharded", 3)
        x, _ = program.batch(3, slice(6 * rank, 6 * rank + 6))
        with ld.Doctor(model, torch.optim.SGD(model.parameters()), strict=True) as doctor:
            doctor.load_state_dict({"step": program.STEPS})
            wanted = doctor.endpoint(torch.zeros_like(x), x, program.field_of(model), x[:, :1], steps=program.ROLLOUT)
        run = two.run("sharded", rank)
        assert wanted.keys() >= {"flow/ode_error@2", "flow/endpt_rmse@4", "flow/straightness"}
        assert {key: run[key].values[-1] for key in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_ranks_that_do_not_ask_equally_often_are_told_and_train_on(trouble) -> None:
    for rank in (0, 1):
        failed = {one["measurement"]: one["error"] for one in trouble.events("sharded_out_of_step", "failure", rank)}
        assert set(failed) == {"endpoint", "probes", "steps"}
        assert "as many forwards on every rank" in failed["endpoint"]
        rets = trouble.of("sharded_out_of_step", rank)["on"]["rets"]
        assert rets[1].keys() >= {"step/a_head_update_ratio", "descent/a", "grad/clip_ratio", "flow/time_ratio"}
        assert not any(key.startswith(("step/", "descent/", "flow/time_ratio")) for key in [*rets[2], *rets[3]])
        assert "grad/total" in rets[3]
        assert "grad/clip_ratio" not in rets[2]


@pytest.mark.parametrize("name", ["in_backward", "sharded_in_backward"])
def test_an_optimizer_in_the_backward_is_refused_in_one_sentence(trouble, name) -> None:
    (warning,) = trouble.of(name)["warnings"]
    assert "an optimizer steps inside the backward" in warning
    for rank in (0, 1):
        assert trouble.run(name, rank)["loss/flow"].steps.tolist() == list(range(program.STEPS))
        assert not any(key.startswith("grad") for ret in trouble.of(name, rank)["on"]["rets"] for key in ret)
        assert not any(event["facts"]["optimizers"]["missing"] for event in trouble.events(name, "audit", rank))


def test_sharded_parameters_that_are_not_reduced_are_passed_over(two) -> None:
    assert "grad/total" not in two.of("sharded_unsynced")["on"]["rets"][-1]
    assert "set_requires_gradient_sync" in two.events("sharded_unsynced", "passed_over")[0]["reason"]


def test_another_layout_of_shards_is_refused_in_one_sentence(trouble) -> None:
    (warning,) = trouble.of("hybrid")["warnings"]
    assert "not in shards over all ranks of the job" in warning
    last = trouble.of("hybrid")["on"]["rets"][-1]
    assert "grad/total" not in last
    assert "loss/flow" in last


def test_losses_of_steps_that_are_not_due_are_averaged_too(two, tmp_path) -> None:
    alone("seldom", tmp_path)
    wanted, found = ld.Run.open(tmp_path / "alone"), two.run("seldom")
    assert found.steps.tolist() == [0, 2]
    for name in ("loss/a", "loss/flow", "loss/total"):
        assert found[name].steps.tolist() == wanted[name].steps.tolist() == list(range(program.STEPS))
        assert found[name].values == pytest.approx(wanted[name].values, rel=1e-4)


def test_every_rank_has_a_file_of_its_own_and_the_folder_says_what_is_in_it(two) -> None:
    first, second = two.run("plain"), two.run("plain", 1)
    assert first.ranks == (0, 1)
    assert first["grad/flow"].values.tolist() == second["grad/flow"].values.tolist()
    assert first["flow/cos"].values.tolist() != second["flow/cos"].values.tolist()
    whose = first.meta["ranks"]
    assert (whose["size"], whose["gradients"], whose["velocity"]) == (2, "global", "own")


def test_ranks_are_compared(two) -> None:
    (event,) = two.events("plain", "ranks")
    assert event["facts"]["weights"] == 1
    assert event["facts"]["inputs"]["flow.z1"] == 2
    assert event["facts"]["inputs"]["flow.z0"] == 1, "all zeros on both"
    assert two.events("plain", "ranks", 1) == []


def test_processes_that_train_a_model_each_keep_their_own_numbers(two) -> None:
    each = [two.of("apart", rank)["on"]["rets"][-1] for rank in (0, 1)]
    assert each[0]["grad/flow"] != each[1]["grad/flow"]
    assert each[0]["loss/flow"] != each[1]["loss/flow"]
    assert [event["what"] for event in two.events("apart", "ranks_differ")] == ["weights apart", "model"]


def findings(outcome: Outcome, name: str) -> dict[str, Finding]:
    """What the rules about ranks say of the run, by code."""
    told = ld.diagnose(outcome.run(name))
    assert not [skipped for _, skipped in told.skipped if skipped.reason.key == "skip.failed"]
    return {finding.code: finding for finding in told.findings if finding.code.startswith("RNK")}


def same(outcome: Outcome, name: str, what: str, rank: int = 0) -> list[float]:
    run = outcome.run(name, rank)
    return run[f"ranks/same/{what}"].values.tolist() if f"ranks/same/{what}" in run else []


def test_ranks_that_draw_for_themselves_are_clear(two) -> None:
    told = ld.diagnose(two.run("own_draws"))
    assert {"RNK001", "RNK002", "RNK003"} <= set(told.clear)
    for what in ("flow.z1", "flow.t", "posterior.noise"):
        assert same(two, "own_draws", what) == [0.0] * 7, "from the second measured step on"
    assert same(two, "own_draws", "flow.z0") == [], "zeros at every step are no noise"
    assert two.run("own_draws")["ranks/weights_apart"].values.tolist() == [0.0] * 8


def test_a_grid_of_times_is_not_drawn(two) -> None:
    assert same(two, "grid", "flow.t") == []
    assert findings(two, "grid") == {}


def test_ranks_with_the_same_data_are_found(two) -> None:
    found = findings(two, "same_data")
    assert list(found) == ["RNK001"]
    assert found["RNK001"].causes[0].code == "data-not-sharded"
    assert same(two, "same_data", "flow.z1") == same(two, "same_data", "flow.z1", 1) == [1.0] * 7
    assert same(two, "same_data", "flow.t") == same(two, "same_data", "posterior.noise") == [0.0] * 7


def test_ranks_with_the_same_noise_are_found(two) -> None:
    found = findings(two, "same_noise")
    assert list(found) == ["RNK002"]
    assert {one.metric for one in found["RNK002"].evidence} == {"ranks/same/flow.t", "ranks/same/posterior.noise"}
    assert same(two, "same_noise", "flow.z1") == [0.0] * 7


def test_of_ranks_with_the_same_data_and_noise_the_data_lead(two) -> None:
    assert findings(two, "same_draws")["RNK002"].explained_by == "RNK001"


def test_a_parameter_outside_the_wrapper_is_named(two) -> None:
    found = findings(two, "outside")
    assert list(found) == ["RNK003"]
    assert (found["RNK003"].severity, found["RNK003"].message.key) == ("error", "rule.RNK003")
    apart = two.run("outside")["ranks/weights_apart"].values
    assert apart[0] == 0.0
    assert (apart[2:] > 1e-6).all(), "the first step of Adam is a sign, and may be the same"
    each = next(event["each"] for event in two.events("outside", "ranks_differ") if event["what"] == "weights apart")
    assert (each["count"], each["tensors"]) == (1, ["(outside the model)"])


def test_a_teacher_of_its_own_on_every_rank_is_found(two) -> None:
    found = findings(two, "own_teacher")
    assert list(found) == ["RNK003"]
    assert (found["RNK003"].subject, found["RNK003"].causes[0].code) == ("teacher", "not-broadcast")
    exact = []
    for rank in (0, 1):
        torch.manual_seed(rank)
        exact.append(torch.cat([p.detach().flatten() for p in program.Net().parameters()]))
    wanted = float((exact[1] - exact[0]).norm() / exact[0].norm())
    assert two.run("own_teacher", 1)["ranks/teacher_apart"].values.tolist() == pytest.approx([wanted] * 8, rel=0.3)
    assert two.run("own_teacher")["ranks/weights_apart"].values.tolist() == [0.0] * 8


def test_ranks_that_train_a_model_each_are_told_so(two) -> None:
    assert findings(two, "apart")["RNK003"].message.key == "rule.RNK003.model"


@pytest.mark.parametrize("name", [name for name in (*SOUND, *SKETCHED) if name not in program.SICK])
def test_no_sound_training_has_a_finding_about_its_ranks(two, name) -> None:
    assert findings(two, name) == {}


@pytest.mark.parametrize("name", TROUBLE)
def test_trouble_in_the_doctor_does_not_touch_the_training(trouble, name) -> None:
    assert_neutral(trouble, name)


def test_rank_0_decides_which_steps_are_due(trouble) -> None:
    for rank in (0, 1):
        assert trouble.run("schedules", rank).steps.tolist() == [0, 2]
        assert [event["what"] for event in trouble.events("schedules", "ranks_differ", rank)] == ["schedule"]


def test_a_doctor_on_one_rank_only_says_so_and_measures_its_own_batch(trouble) -> None:
    (warning,) = trouble.of("only_rank_0")["warnings"]
    assert "a Doctor on every rank" in warning
    last = trouble.of("only_rank_0")["on"]["rets"][-1]
    assert "grad/total" not in last
    assert "loss/flow" in last


def test_a_rank_that_fails_switches_the_gradients_off_for_all(trouble) -> None:
    for rank in (0, 1):
        rets = trouble.of("fails", rank)["on"]["rets"]
        assert "grad/total" in rets[1]
        assert not any(key.startswith(("grad", "descent/")) for key in rets[2])
        assert "step/a_head_update_ratio" in rets[2]
        assert "loss/flow" in rets[-1]
    (event,) = trouble.events("fails", "failure")
    assert event["measurement"] == "gradients"
    assert "rank 1" in event["error"]
    assert len(trouble.of("fails")["warnings"]) == 1
    assert trouble.of("fails", 1)["warnings"] == [], "only rank 0 speaks"


def test_a_rank_that_closes_its_doctor_is_not_waited_for(trouble) -> None:
    (event,) = trouble.events("leaves", "failure")
    assert "closed" in event["error"]
    assert "loss/flow" in trouble.of("leaves")["on"]["rets"][-1]
    lines = (trouble.folder / "leaves" / "events.jsonl").read_text().splitlines()
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize("name", BALANCED)
def test_all_ranks_come_to_the_same_factors_as_one_process(two, name, tmp_path) -> None:
    mine, other = (two.of(name, rank)["on"] for rank in (0, 1))
    assert mine["balance"] == other["balance"], "to the last bit, the balancer's memory included"
    assert any(factor != 1.0 for factor in mine["balance"]["factors"].values())
    one = program.train(tmp_path / "alone", 0, 1, **program.settings(name, 0))
    for loss, factor in one["balance"]["factors"].items():
        assert mine["balance"]["factors"][loss] == pytest.approx(factor, rel=0.02)


@pytest.mark.parametrize("name", BALANCED)
def test_balanced_weights_of_all_ranks_stay_the_same(two, name) -> None:
    mine, other = (two.of(name, rank)["on"] for rank in (0, 1))
    for a, b in zip(mine["rets"], other["rets"], strict=True):
        for key in a:
            if key.startswith(("balance/", "weight/")):
                assert a[key] == b[key], key
    if "sharded" in name:
        return  # each has its own part
    count = len(list(program.Net().state_dict()))
    for a, b in zip(mine["states"][-1][:count], other["states"][-1][:count], strict=True):
        assert torch.equal(a, b)
