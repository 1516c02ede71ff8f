"""The Doctor on real loops: what is due, what is recorded, and that its numbers are the obvious ones."""

from __future__ import annotations

import copy
import gc
import json
import math
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.errors import RunExistsError, ShapeError, UsageError


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.SiLU())
        self.a_head = nn.Linear(16, 3)
        self.b_head = nn.Linear(16, 2)

    def losses(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"a": self.a_head(h).square().mean(), "b": (self.b_head(h) - 1).square().mean()}


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small()


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, **options)


def failures(run: ld.Run) -> list[dict[str, object]]:
    return [event for event in run.events if event["kind"] != "audit"]


def audits(run: ld.Run) -> list[tuple[int, dict[str, object]]]:
    return [(event["step"], event["facts"]) for event in run.events if event["kind"] == "audit"]


def one_step(doctor, model, optimizer, x=None, weights=None) -> None:
    doctor.backward(model.losses(torch.randn(8, 4) if x is None else x), weights)
    optimizer.step()
    optimizer.zero_grad()


def test_only_due_steps_are_measured_and_every_loss_is_kept(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=3, strict=True) as doctor:
        for step in range(8):
            ld.log(lr=0.1 * step, note=torch.tensor([1.0, 3.0]))
            one_step(doctor, model, optimizer)
        run = doctor.run
        assert run.steps.tolist() == [0, 3, 6]
        assert run["grad/total"].steps.tolist() == [0, 3, 6]
        assert run["loss/a"].steps.tolist() == list(range(7)), "step 7 waits for the next due record"
    assert run["loss/a"].steps.tolist() == list(range(8)), "close writes what waits"
    assert run["lr"].values.tolist() == pytest.approx([0.1 * s for s in range(8)])
    assert set(run["note"].values) == {2.0}
    assert doctor.ret["grad/total"] == run["grad/total"].values[-1]
    assert doctor.step == 8


def test_numbers_are_those_of_the_obvious_way(model) -> None:
    optimizer = sgd(model, momentum=0.9, weight_decay=0.1)
    weights = {"a": 2.0, "b": 0.25}
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=1, strict=True) as doctor:
        for _ in range(4):
            x, twin = torch.randn(8, 4), copy.deepcopy(model)
            before = [p.detach().clone() for p in model.parameters()]
            doctor.backward(model.losses(x), weights)
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
            clipped = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
            optimizer.step()
            optimizer.zero_grad()
            grads = {n: torch.autograd.grad(twin.losses(x)[n], twin.parameters(), allow_unused=True) for n in "ab"}
            long = {
                n: torch.cat(
                    [(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(row, before, strict=True)]
                )
                for n, row in grads.items()
            }
            total = 2.0 * long["a"] + 0.25 * long["b"]
            moved = torch.cat([(p.detach() - b).reshape(-1) for p, b in zip(model.parameters(), before, strict=True)])
            head = {
                n: torch.cat([g.reshape(-1) for g in row[2:4] if g is not None]) for n, row in grads.items() if n == "a"
            }
            ratios = [
                (p.detach() - b).norm() / (b.norm() + 1e-12) for p, b in zip(model.parameters(), before, strict=True)
            ]
            wanted = {
                "grad/a": long["a"].norm(),
                "grad/b": long["b"].norm(),
                "grad/total": total.norm(),
                "grad_weighted/b": 0.25 * long["b"].norm(),
                "grad_share/a": 2.0 * (long["a"] @ total) / (total @ total),
                "grad_cos/a|b": torch.cosine_similarity(long["a"], long["b"], dim=0),
                "grad_module/a/a_head": head["a"].norm(),
                "descent/a": -(moved @ long["a"]),
                "descent/b": -(moved @ long["b"]),
                "grad/clip_ratio": clipped.norm() / total.norm(),
                "step/a_head_update_ratio": sum(ratios[2:4]) / 2,
                "weight/b": 0.25,
                "lr/a_head": 0.1,
                "wd/a_head": 0.1,
                "loss/total": 2.0 * doctor.ret["loss/a"] + 0.25 * doctor.ret["loss/b"],
            }
            for key, value in wanted.items():
                assert doctor.ret[key] == pytest.approx(float(value), rel=2e-4, abs=1e-8), key
            assert doctor.ret["grad_share/a"] + doctor.ret["grad_share/b"] == pytest.approx(1.0)
            assert "grad_module/a/b_head" not in doctor.ret


def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(model) -> None:
    x = torch.randn(12, 4)
    found = []
    for parts in (1, 4):
        twin = copy.deepcopy(model)
        optimizer = sgd(twin)
        with ld.Doctor(twin, optimizer, every=1, strict=True) as doctor:
            for part in x.chunk(parts):
                doctor.backward({n: loss / parts for n, loss in twin.losses(part).items()})
            optimizer.step()
            found.append(doctor.ret)
    for key, value in found[0].items():
        if not key.startswith("loss/"):
            assert found[1][key] == pytest.approx(value, rel=1e-4, abs=1e-7), key


def test_grad_scaler_is_divided_out_and_a_skipped_step_leaves_no_gradients(model) -> None:
    optimizer, x = sgd(model), torch.randn(8, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        wanted = torch.cat(
            [g.reshape(-1) for g in torch.autograd.grad(sum(model.losses(x).values()), list(model.parameters()))]
        ).norm()
        doctor.backward(model.losses(x), scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert doctor.ret["grad/total"] == pytest.approx(float(wanted), rel=1e-5)
        assert "grad/clip_ratio" not in doctor.ret
        doctor.backward({n: loss * math.inf for n, loss in model.losses(x).items()}, scaler=scaler)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert doctor.step == 1, "GradScaler skipped the step"
        doctor.backward(model.losses(x), scaler=scaler)
        scaler.step(optimizer)
        assert doctor.step == 2
        assert math.isfinite(doctor.ret["grad/total"])


def test_two_optimizers_in_one_step_and_in_turns(model) -> None:
    first = torch.optim.SGD(model.body.parameters(), lr=0.1)
    second = torch.optim.SGD([*model.a_head.parameters(), *model.b_head.parameters()], lr=0.01)
    heads = {"a_head": model.a_head, "body": model.body}
    with ld.Doctor(model, [first, second], heads=heads, every=4, strict=True) as doctor:
        doctor.backward(model.losses(torch.randn(8, 4)))
        first.step()
        assert doctor.step == 0, "the second optimizer is still to come"
        second.step()
        assert doctor.step == 1
        assert doctor.ret["lr/a_head"] == pytest.approx(0.01)
        assert doctor.ret["lr/body"] == pytest.approx(0.1)
        model.zero_grad()
        for turn in range(11):
            optimizer = (first, second)[turn % 2]
            doctor.backward({"ab"[turn % 2]: model.losses(torch.randn(8, 4))["ab"[turn % 2]]})
            optimizer.step()
            model.zero_grad()
        run = doctor.run
    assert run["grad/a"].steps.tolist()[1:] == [5, 9]
    assert run["grad/b"].steps.tolist()[1:] == [4, 8], "each of the two that take turns gets a measured step"


def test_ema_and_teacher_are_followed_from_one_step_to_the_next(model) -> None:
    ema = copy.deepcopy(model).requires_grad_(False)
    teacher = nn.Linear(4, 1).requires_grad_(False)
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, ema=ema, teacher=teacher, every=1, strict=True) as doctor:
        for step in range(5):
            one_step(doctor, model, optimizer)
            if step:
                assert doctor.ret["ema/momentum"] == pytest.approx(0.9, abs=1e-3)
                assert doctor.ret["ema/distance"] > 0
                assert doctor.ret["teacher/moved"] == 0.0
                assert "teacher/distance" not in doctor.ret
            for slow, fast in zip(ema.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast.detach(), 0.1)


def test_the_teachers_momentum_is_that_of_its_last_update(model) -> None:
    student = model.body
    model.teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, teacher=model.teacher, every=2, strict=True) as doctor:
        for step in range(5):
            one_step(doctor, model, optimizer)
            for slow, fast in zip(model.teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast.detach(), 0.25)
            if step in (2, 4):
                assert doctor.ret["teacher/momentum"] == pytest.approx(0.75, abs=1e-3)


# Recorded audits


def test_the_audit_is_taken_at_the_first_due_step_when_gradients_are_there(model) -> None:
    model.unused = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.body.parameters(), *model.b_head.parameters()], lr=0.1)
    teacher = copy.deepcopy(model).requires_grad_(False).eval()
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, teacher=teacher, every=3, strict=True) as doctor:
        doctor.backward(model.losses(torch.randn(8, 4)))
        assert audits(doctor.run) == []
        optimizer.step()
        optimizer.zero_grad()
        [(step, facts)] = audits(doctor.run)
        for _ in range(9):
            one_step(doctor, model, optimizer)
        assert len(audits(doctor.run)) == 1, "nothing has changed"
    assert step == 0
    found = facts["optimizers"]
    assert (found["missing_count"], found["missing_with_grad"]) == (4, 2)
    assert found["missing_whole"] == ["a_head", "unused"]
    assert facts["heads"]["a_head"]["in_optimizer"] is False
    assert facts["teacher"]["training"] == facts["teacher"]["aliased"] == 0
    assert facts["accumulation"] == {"backwards": 1}
    assert facts["autocast"] is None


def test_a_changed_audit_is_told_at_the_next_due_step(model) -> None:
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=2, strict=True) as doctor:
        for step in range(12):
            if step == 5:
                model.a_head.requires_grad_(False)
            for _ in range(2 if step == 10 else 1):
                doctor.backward(model.losses(torch.randn(8, 4)))
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        told = audits(doctor.run)
    assert [step for step, _ in told] == [0, 6, 10]
    assert [facts["accumulation"]["backwards"] for _, facts in told] == [1, 1, 2]


@pytest.mark.parametrize(("inside", "between"), [(True, 2), (False, 0)])
@pytest.mark.parametrize("gradients", ["exact", "off"])
def test_an_ema_updated_between_the_backwards_of_a_step_is_audited(model, inside, between, gradients) -> None:
    ema, optimizer = copy.deepcopy(model), sgd(model)

    def follow() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 0.1)

    with ld.Doctor(model, optimizer, ema=ema, every=2, gradients=gradients, strict=True) as doctor:
        for _ in range(4):
            for micro in range(3):
                doctor.backward(model.losses(torch.randn(8, 4)))
                if inside or micro == 2:  # the last one comes after the backwards, which is late but once
                    follow()
            optimizer.step()
            optimizer.zero_grad()
        told = audits(doctor.run)
    assert [facts["ema"]["updates_between"] for _, facts in told] == [between]


def test_precision_is_audited_without_a_flow(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = model.body(torch.randn(8, 4))
            ld.posterior(h, h)
            loss = h.float().square().mean()
        doctor.backward({"kl": loss})
        optimizer.step()
        [(_, facts)] = audits(doctor.run)
    assert facts["autocast"] == "bfloat16"
    assert facts["dtypes"] == {"float32": 6}


def test_a_failing_audit_costs_only_the_audit(model, monkeypatch: pytest.MonkeyPatch) -> None:
    from lossdoctor.probe.audit import Auditor

    def broken(*args, **kwargs):
        raise RuntimeError("lazy parameter")

    monkeypatch.setattr(Auditor, "news", broken)
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1) as doctor:
        with pytest.warns(UserWarning, match="audit is no longer measured"):
            one_step(doctor, model, optimizer)
        one_step(doctor, model, optimizer)
        assert doctor.run["grad/a"].steps.tolist() == [0, 1]
        assert [event["measurement"] for event in doctor.run.events] == ["audit"]


# Accumulation


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_zeroed_between_micro_batches_are_told(model, set_to_none: bool, scaled: bool) -> None:
    optimizer, x = sgd(model), torch.randn(8, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    found = {}
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        for lost in (False, True, False):
            for _ in range(4):
                if lost:
                    optimizer.zero_grad(set_to_none=set_to_none)
                doctor.backward(model.losses(x), scaler=scaler)
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step() if scaler is None else scaler.step(optimizer)
            if scaler is not None:
                scaler.update()
            optimizer.zero_grad(set_to_none=set_to_none)
            found.setdefault(lost, []).append(doctor.ret["grad/accumulation"])
    assert found[False] == [1.0, 1.0]
    assert found[True] == [pytest.approx(0.25, rel=1e-4)]


def test_one_backward_per_step_has_no_accumulation(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        for _ in range(3):
            one_step(doctor, model, optimizer)
            assert "grad/accumulation" not in doctor.ret


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_step_that_grad_scaler_skipped_is_no_lost_accumulation(model, set_to_none: bool) -> None:
    optimizer, x = sgd(model), torch.randn(8, 4)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    wanted = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(sum(model.losses(x).values()), list(model.parameters()))]
    ).norm()
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        for factor in (math.inf, 1.0):
            doctor.backward({n: loss * factor for n, loss in model.losses(x).items()}, scaler=scaler)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=set_to_none)
        assert doctor.step == 1
        assert doctor.ret["grad/total"] == pytest.approx(float(wanted), rel=1e-5)
        assert "grad/accumulation" not in doctor.ret
        assert audits(doctor.run)[0][1]["accumulation"] == {"backwards": 1}


def test_an_optimizer_that_is_not_watched_may_take_its_turn(model) -> None:
    watched = torch.optim.SGD([*model.body.parameters(), *model.a_head.parameters()], lr=0.1)
    other = torch.optim.SGD(model.b_head.parameters(), lr=0.1)
    with ld.Doctor(model, watched, every=1, strict=True) as doctor:
        for _ in range(3):
            doctor.backward({"b": model.losses(torch.randn(8, 4))["b"]})
            other.step()
            model.zero_grad()
            doctor.backward({"a": model.losses(torch.randn(8, 4))["a"]})
            watched.step()
            model.zero_grad()
            assert "grad/accumulation" not in doctor.ret
            assert "grad/b" not in doctor.ret
            assert doctor.ret["grad_share/a"] == pytest.approx(1.0)


def test_the_loss_is_compared_with_all_micro_batches(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        for _ in range(3):
            x, target = torch.randn(8, 4), 10 * torch.rand(()) * torch.randn(8, 3)
            v = model.a_head(model.body(x))
            ld.flow(v, target, torch.rand(8))
            doctor.backward({"flow": (v - target).square().sum(1).mean()})
        optimizer.step()
    assert doctor.ret["flow/loss_ratio"] == pytest.approx(3.0, rel=1e-5), "a sum over three dimensions"
    meta = doctor.run.meta
    assert meta["shapes"] == {"batch": 24, "velocity_dimensions": 3}


def test_micro_batches_that_cannot_be_joined_are_compared_with_their_own_loss(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        for size in (8, 6):
            v = model.a_head(model.body(torch.randn(size, 4)))
            target = torch.randn(size, 3) * size
            ld.flow(v, target, torch.rand(size), cond={"label": torch.arange(size) % 2})
            doctor.backward({"flow": (v - target).square().mean()})
        optimizer.step()
    assert doctor.ret["flow/loss_ratio"] == pytest.approx(1.0, rel=1e-5)
    assert doctor.ret["flow/cond_distinct"] == 2.0
    assert doctor.ret["flow/cond_mode_share"] == 0.5
    assert failures(doctor.run) == []


def test_shapes_are_told_once_for_rules_to_divide_by(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        for size in (8, 5):
            h = model.body(torch.randn(size, 4))
            v = model.a_head(h).reshape(size, 1, 3)
            ld.flow(v, torch.zeros_like(v), torch.rand(size))
            ld.posterior(h.reshape(size, 4, 4), h.reshape(size, 4, 4))
            ld.distill(model.b_head(h), model.b_head(h), teacher_temp=torch.tensor(0.05), student_temp=0.1)
            doctor.backward({"flow": v.square().mean(), "dino": h.mean()})
            optimizer.step()
            optimizer.zero_grad()
    wanted = {"batch": 8, "velocity_dimensions": 3, "posterior_dimensions": 16, "prototypes": 2}
    assert doctor.run.meta["shapes"] == wanted
    assert doctor.ret["distill/teacher_temp"] == pytest.approx(0.05)
    assert doctor.ret["distill/student_temp"] == 0.1


def test_none_vector_constant_and_number_losses(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        h = model.body(torch.randn(8, 4))
        total = doctor.backward(
            {"vector": h.square().mean(-1), "none": None, "constant": torch.tensor(2.0), "number": 3.0}, {"none": 5.0}
        )
        optimizer.step()
    assert not total.requires_grad
    assert total.item() == pytest.approx(h.square().mean().item() + 5.0)
    assert doctor.ret["loss/constant"] == 2.0
    assert doctor.ret["weight/constant"] == 1.0
    assert "grad/constant" not in doctor.ret
    assert "loss/none" not in doctor.ret
    assert doctor.ret["grad_share/vector"] == pytest.approx(1.0)


def test_a_foreign_backward_is_called_once_with_the_total(model) -> None:
    optimizer, calls = sgd(model), []

    def backward(loss: Tensor) -> None:
        calls.append(loss)
        (loss / 4).backward()

    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        doctor.backward(model.losses(torch.randn(8, 4)), backward=backward)
        optimizer.step()
    assert len(calls) == 1
    assert doctor.ret["grad_share/a"] + doctor.ret["grad_share/b"] == pytest.approx(1.0)


def test_a_plain_loop_without_backward_still_gets_what_was_handed_in(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=1, strict=True) as doctor:
        out = model.a_head(model.body(torch.randn(8, 4)))
        ld.flow(out, torch.randn(8, 3), torch.rand(8))
        out.square().mean().backward()
        optimizer.step()
    assert {"flow/nmse", "step/a_head_update_ratio"} <= doctor.ret.keys()


def test_evaluation_and_closed_doctors_are_not_disturbed(model) -> None:
    optimizer = sgd(model)
    doctor = ld.Doctor(model, optimizer, every=1, strict=True)
    with torch.no_grad():
        ld.flow(torch.zeros(4, 3), torch.ones(4, 3), torch.rand(4))
    one_step(doctor, model, optimizer)
    assert "flow/nmse" not in doctor.ret
    doctor.close()
    doctor.close()
    ld.flow(torch.zeros(4, 3), torch.ones(4, 2), torch.rand(4))
    assert doctor.backward(model.losses(torch.randn(8, 4))).item() > 0
    optimizer.step()
    assert doctor.step == 1


def test_source_gradient_of_a_jointly_trained_latent() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"encoder": nn.Linear(5, 3), "net": nn.Linear(4, 3)})
    optimizer, x = sgd(model), torch.randn(16, 5)
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        for _ in range(3):
            z1, t = model["encoder"](x), torch.rand(16, 1)
            z0 = torch.randn_like(z1)
            v = model["net"](torch.cat([(1 - t) * z0 + t * z1, t], -1))
            flow = (v - (z1 - z0)).square().mean()
            ld.flow(v, z1 - z0, t, z0=z0, z1=z1)
            (wanted,) = torch.autograd.grad(flow, z1, retain_graph=True)
            doctor.backward({"flow": flow, "other": z1.square().mean()})
            optimizer.step()
            optimizer.zero_grad()
            expected = (wanted * z1).sum() / z1.norm()
            assert doctor.ret["flow/source_gradient"] == pytest.approx(expected.item(), rel=1e-5)


def test_the_last_doctor_listens_and_the_one_before_it_afterwards(model) -> None:
    outer = ld.Doctor(model, sgd(model), every=1)
    with ld.Doctor(model, sgd(model), every=1) as inner:
        ld.log(x=1.0)
    ld.log(y=2.0)
    outer.close()
    assert "x" in inner.run
    assert "y" not in inner.run
    assert "y" in outer.run


def test_a_run_folder_says_what_it_is_and_is_never_overwritten(model, tmp_path: Path) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, run=tmp_path / "r", heads={"a_head": model.a_head}, meta={"seed": 3}) as doctor:
        ld.knob("temperature", 0.07)
        assert ld.condition("c") == "c"
        one_step(doctor, model, optimizer)
    meta = json.loads((tmp_path / "r" / "meta.json").read_text())
    assert meta["seed"] == 3
    assert meta["knobs"] == {"temperature": 0.07}
    assert meta["heads"] == ["a_head"]
    assert meta["losses"] == {"a": "other", "b": "other"}
    # A package on the index may leave out which build it is.
    assert meta["versions"]["torch"] in (torch.__version__, torch.__version__.partition("+")[0])
    with pytest.raises(RunExistsError, match=r"(?s)expected:.*got:.*to do:.*resume=True"):
        ld.Doctor(model, optimizer, run=tmp_path / "r")
    with ld.Doctor(model, optimizer, run=tmp_path / "r", resume=True) as doctor:
        doctor.load_state_dict({"step": 1})
        one_step(doctor, model, optimizer)
    run = ld.Run.open(tmp_path / "r")
    assert run["loss/a"].steps.tolist() == [0, 1]
    assert run["loss/a"].values[-1] == doctor.run["loss/a"].values[-1]


def test_settings_taken_before_the_doctor_is_made_are_its_own() -> None:
    assert ld.knob("temperature", 0.04) == 0.04
    assert ld.knob("temperature", 0.05) == 0.05
    for expected in ({"temperature": 0.05}, {}):
        model = nn.Linear(2, 1)
        with ld.Doctor(model, torch.optim.SGD(model.parameters(), 0.1), run=None) as doctor:
            assert doctor.run.meta.get("knobs", {}) == expected


def test_seed_everything_yields_to_the_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ld.seed_everything(5) == 5
    a = torch.rand(2)
    monkeypatch.setenv("LOSSDOCTOR_SEED", "9")
    assert ld.seed_everything(5) == 9
    assert not torch.equal(a, torch.rand(2))


WRONG_FROM_THE_START = [
    (dict(every=0), "every="),
    (dict(heads={"z": "model.z"}), r"heads\['z'\] is not a module"),
    (dict(kinds={"a": "vae"}), r"kinds\['a'\] is not a kind of loss"),
    (dict(gradients="fast"), "gradients= names a mode"),
    (dict(ema=nn.Linear(1, 1)), "ema= follows no part of the model"),
]


@pytest.mark.parametrize(("options", "message"), WRONG_FROM_THE_START)
def test_wrong_options_are_refused_with_what_to_do(model, options, message) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}.*expected:.*got:.*to do:"):
        ld.Doctor(model, sgd(model), **options)
    with pytest.raises(UsageError, match="Doctor watches optimizers"):
        ld.Doctor(model, model.parameters())


WRONG_TENSORS = {
    "broadcast": (lambda: ld.flow(torch.zeros(4), torch.zeros(4, 1), torch.rand(4)), ShapeError),
    "times per sample": (lambda: ld.flow(torch.zeros(4, 2), torch.zeros(4, 2), torch.rand(3)), ShapeError),
    "t in [0, 1]": (lambda: ld.flow(torch.zeros(4, 2), torch.zeros(4, 2), 1000 * torch.rand(4)), UsageError),
    "NaN times": (lambda: ld.flow(torch.zeros(4, 2), torch.zeros(4, 2), torch.full((4,), math.nan)), UsageError),
    "t_source": (lambda: ld.flow(torch.zeros(4, 2), torch.zeros(4, 2), torch.rand(4), t_source=0.5), UsageError),
    "logits of another K": (
        lambda: ld.distill(torch.zeros(4, 8), torch.zeros(4, 9), teacher_temp=0.1, student_temp=0.1),
        ShapeError,
    ),
    "posterior": (lambda: ld.posterior(torch.zeros(4, 8), torch.zeros(4, 1)), ShapeError),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_wrong_tensors_are_told_on_the_first_step_and_never_stop_a_later_one(model, name) -> None:
    hand_in, error = WRONG_TENSORS[name]
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1) as doctor:
        with pytest.raises(error, match=r"(?s)expected:.*got:.*to do:"):
            hand_in()
        one_step(doctor, model, optimizer)
        if name in ("t in [0, 1]", "NaN times"):
            return  # on later steps t_min and t_max show it
        with pytest.warns(UserWarning, match=r"no longer measured, training goes on"):
            hand_in()
        hand_in()
        one_step(doctor, model, optimizer)
        assert [e["kind"] for e in failures(doctor.run)] == ["failure"]
        assert doctor.step == 2


def test_weights_of_unknown_losses_are_refused_at_any_step(model) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1) as doctor:
        for _ in range(2):
            one_step(doctor, model, optimizer)
        with pytest.raises(UsageError, match=r"unknown losses: 'c'"):
            doctor.backward(model.losses(torch.randn(8, 4)), {"c": 1.0})


def test_a_fault_in_the_doctor_never_stops_training(model, monkeypatch: pytest.MonkeyPatch) -> None:
    from lossdoctor.probe.ledger import Ledger

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Ledger, "observe", broken)
    optimizer, twin = sgd(model), copy.deepcopy(model)
    with ld.Doctor(model, optimizer, every=1) as doctor:
        x = torch.randn(8, 4)
        with pytest.warns(UserWarning, match=r"gradients is no longer measured.*out of memory"):
            one_step(doctor, model, optimizer, x)
        one_step(doctor, model, optimizer, x)
    plain = sgd(twin)
    for _ in range(2):
        sum(twin.losses(x).values()).backward()
        plain.step()
        plain.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))
    assert doctor.run["loss/a"].steps.tolist() == [0, 1]
    [event] = failures(doctor.run)
    assert event["measurement"] == "gradients"
    with pytest.raises(RuntimeError, match="out of memory"), ld.Doctor(model, optimizer, strict=True) as strict:
        strict.backward(model.losses(x))


def test_a_velocity_that_raises_costs_only_the_probes(model) -> None:
    def velocity(x, t, cond):
        raise KeyError("no such embedding")

    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1) as doctor:
        v = model.a_head(model.body(torch.randn(8, 4)))
        ld.flow(v, torch.randn(8, 3), torch.rand(8), x_t=torch.randn(8, 3), velocity=velocity)
        doctor.backward({"flow": v.square().mean()})
        with pytest.warns(UserWarning, match="probes is no longer measured"):
            optimizer.step()
    assert {"flow/nmse", "grad/flow"} <= doctor.ret.keys()


def test_a_folder_that_cannot_be_written_gives_one_warning(model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    optimizer = sgd(model)
    with pytest.warns(UserWarning, match="can no longer be written.*stay in memory") as caught:
        doctor = ld.Doctor(model, optimizer, run=tmp_path / "file" / "run", every=1)
    assert len(caught) == 1
    one_step(doctor, model, optimizer)
    doctor.close()
    assert doctor.run["grad/a"].steps.tolist() == [0]


def test_endpoint_is_evaluated_without_a_trace_and_recorded(model) -> None:
    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 2))

        def forward(self, x: Tensor, t: Tensor, cond: object) -> Tensor:
            assert not self.training
            return self.net(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], -1))

    field = Field()
    before, rng = copy.deepcopy(field.state_dict()), torch.get_rng_state()
    with ld.Doctor(field, sgd(field), strict=True) as doctor:
        z0, z1 = torch.zeros(40, 2), torch.ones(40, 2)
        values = doctor.endpoint(z0, z1, field, steps=(4, 8))
        assert {"flow/endpt_rmse@4", "flow/endpt_rmse@8", "flow/ode_order", "flow/endpt_sw_floor"} <= values.keys()
        assert doctor.run["flow/endpt_rmse@8"].steps.tolist() == [0]
        assert doctor.ret["flow/ode_order"] == values["flow/ode_order"]
    assert all(m.training for m in field.modules())
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), field.state_dict().values(), strict=True))


def test_a_sampler_of_ones_own_is_named_and_leaves_no_trace(model) -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def draw(self, velocity, z0: Tensor, cond: object, steps: int) -> Tensor:
            self.calls += 1
            assert not self.training
            torch.rand(3)
            for k in range(steps):
                z0 += velocity(z0, torch.full((len(z0),), k / steps), cond) / steps
            return z0

    def field(x: Tensor, t: Tensor, cond: object) -> Tensor:
        return torch.sin(3 * x) + t[:, None]

    sampler, rng = Sampler(), torch.get_rng_state()
    with ld.Doctor(model, sgd(model), strict=True) as doctor:
        z0, z1 = torch.zeros(8, 2), torch.ones(8, 2)
        values = doctor.endpoint(z0, z1, field, steps=(4, 8), solver=sampler.draw)
        assert doctor.run.meta["endpoint"] == {"solver": "draw", "order": 1, "steps": [4, 8], "samples": 8}
        same = doctor.endpoint(z0, z1, field, steps=(4, 8))
        assert doctor.run.meta["endpoint"] == {"solver": "euler", "order": 1, "steps": [4, 8], "samples": 8}
        doctor.endpoint(z0, z1, field, steps=(4, 8), solver="heun")
        assert doctor.run.meta["endpoint"]["order"] == 2
        with pytest.raises(UsageError, match="ddim"):
            doctor.endpoint(z0, z1, field, solver="ddim")
    assert values["flow/ode_error@8"] == pytest.approx(same["flow/ode_error@8"], rel=1e-4)
    assert float(sampler.calls) == 0.0
    assert sampler.training
    assert torch.equal(rng, torch.get_rng_state())
    assert not z0.any()


def test_no_synchronisation_on_steps_that_are_not_due(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way from a tensor to a Python number is watched; a step that is not due takes none."""
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, every=1000, strict=True) as doctor:
        one_step(doctor, model, optimizer)
        asked: list[str] = []
        for name in ("item", "tolist", "__bool__", "__float__", "numpy", "cpu"):
            original = getattr(Tensor, name)
            monkeypatch.setattr(
                Tensor, name, lambda self, *a, n=name, o=original, **k: (asked.append(n), o(self, *a, **k))[1]
            )
        for _ in range(5):
            ld.flow(torch.zeros(4, 2), torch.zeros(4, 2), torch.rand(4))
            ld.log(x=torch.tensor(1.0))
            doctor.backward(model.losses(torch.randn(8, 4)))
        assert asked == []


def test_a_due_step_leaves_nothing_for_the_collector(model) -> None:
    """What a step held, the gradients of every loss among it, is free once the step is over."""
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=2, strict=True) as doctor:
        one_step(doctor, model, optimizer)
        one_step(doctor, model, optimizer)
        gc.collect()
        gc.disable()
        try:
            v = model.a_head(model.body(torch.randn(8, 4)))
            ld.flow(v, torch.randn(8, 3), torch.rand(8), x_t=torch.randn(8, 3), velocity=lambda x, t, c: x)
            doctor.backward({"a": v.square().mean(), "b": v.mean()})
            rows = doctor._course.examination.ledger.rows.values()
            held = weakref.ref(next(piece for row in rows for piece in row if piece is not None))
            del rows
            assert held() is not None
            optimizer.step()
            one_step(doctor, model, optimizer)
            assert held() is None
        finally:
            gc.enable()


def test_a_due_step_copies_to_the_host_once(model, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = sgd(model)
    with ld.Doctor(model, optimizer, heads={"a_head": model.a_head}, every=1, strict=True) as doctor:
        one_step(doctor, model, optimizer)
        asked: list[str] = []
        for name in ("item", "tolist", "__bool__", "__float__", "numpy", "cpu"):
            original = getattr(Tensor, name)
            monkeypatch.setattr(
                Tensor, name, lambda self, *a, n=name, o=original, **k: (asked.append(n), o(self, *a, **k))[1]
            )
        v = model.a_head(model.body(torch.randn(8, 4)))
        ld.flow(v, torch.randn(8, 3), torch.rand(8))
        ld.posterior(v, v)
        ld.distill(v, v, teacher_temp=0.1, student_temp=0.1)
        doctor.backward({"a": v.square().mean(), "b": v.mean()})
        optimizer.step()
        assert asked == ["tolist"]
