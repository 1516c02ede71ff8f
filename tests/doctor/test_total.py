"""`ld.total`, for frameworks that run the backward themselves, and steps that clip inside their closure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lossdoctor as ld
from lossdoctor.errors import UsageError


def problem() -> tuple[nn.Module, torch.optim.Optimizer, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2))
    return model, torch.optim.Adam(model.parameters(), lr=0.01), torch.randn(16, 3)


def losses(model: nn.Module, x: Tensor) -> dict[str, Tensor | float | None]:
    out = model(x)
    return {"a": out.square(), "b": out.abs().mean(), "c": None, "d": 2.0}


WEIGHTS = {"a": 0.5, "c": 3.0, "b": torch.tensor(2.0)}


def test_it_is_the_weighted_sum_with_and_without_a_doctor() -> None:
    model, optimizer, x = problem()
    found = losses(model, x)
    wanted = found["a"].mean() * 0.5 + found["b"] * 2.0 + 2.0  # type: ignore[union-attr, operator]
    assert torch.equal(ld.total(found, WEIGHTS), wanted)
    with ld.Doctor(model, optimizer):
        assert torch.equal(ld.total(found, WEIGHTS), wanted)
    for wrong in ({}, {"a": None}, [wanted]):
        with pytest.raises(UsageError):
            ld.total(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown losses"):
        ld.total(found, {"e": 1.0})


def trained(how: str) -> dict[str, float]:
    model, optimizer, x = problem()
    with ld.Doctor(model, optimizer, every=1, strict=True, gradients="exact") as doctor:
        for _ in range(3):
            if how == "backward":
                doctor.backward(losses(model, x), WEIGHTS)
            else:
                total = ld.total(losses(model, x), WEIGHTS)
                with torch.no_grad():
                    ld.total(losses(model, 100 * x), WEIGHTS)  # an evaluation in between
                doctor.before_backward(foreign=how == "divided")
                (total / 4 if how == "divided" else total).backward()
                doctor.after_backward()
            optimizer.step()
            optimizer.zero_grad()
        return doctor.ret


def test_its_numbers_are_those_of_backward() -> None:
    wanted = trained("backward")
    assert {"grad/a", "grad_cos/a|b", "descent/b"} <= set(wanted)
    assert trained("total") == pytest.approx(wanted, rel=1e-6)
    divided = trained("divided")
    assert divided["loss/a"] == pytest.approx(wanted["loss/a"], rel=1e-3)
    for name in ("grad/total", "grad/a", "grad/b"):
        assert 4 * divided[name] == pytest.approx(wanted[name], rel=1e-3)
    assert divided["grad_share/a"] == pytest.approx(wanted["grad_share/a"], rel=1e-3)


def test_a_total_without_its_backward_is_a_value_and_no_more() -> None:
    model, optimizer, x = problem()
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        doctor.before_backward()
        doctor.after_backward()
        ld.total(losses(model, x), WEIGHTS).backward()
        optimizer.step()
        assert "loss/a" in doctor.ret
        assert "grad/a" not in doctor.ret
    assert ld.total(losses(model, x), WEIGHTS).requires_grad, "after the end"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_it_compiles() -> None:
    model, optimizer, x = problem()

    @torch.compile(backend="eager")
    def step(x: Tensor) -> Tensor:
        return ld.total({"a": model(x).square().mean(), "b": x.mean()}, {"a": 0.5})

    wanted = 0.5 * model(x).square().mean() + x.mean()
    with ld.Doctor(model, optimizer, every=1, strict=True) as doctor:
        found = step(x)
        doctor.before_backward()
        found.backward()
        doctor.after_backward()
        optimizer.step()
    torch.testing.assert_close(found, wanted)
    assert "grad/a" in doctor.ret


def test_clipping_inside_a_closure_is_seen() -> None:
    def run(*, closure: bool) -> dict[str, float]:
        model, optimizer, x = problem()
        with ld.Doctor(model, optimizer, every=1, strict=True, gradients="exact") as doctor:

            def evaluate() -> Tensor:
                optimizer.zero_grad()
                total = doctor.backward(losses(model, x), WEIGHTS)
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
                return total

            for _ in range(3):
                if closure:
                    optimizer.step(evaluate)  # type: ignore[arg-type]
                else:
                    evaluate()
                    optimizer.step()
            return doctor.ret

    found, wanted = run(closure=True), run(closure=False)
    assert found["grad/clip_ratio"] < 0.5
    assert found == pytest.approx(wanted, rel=1e-6)
