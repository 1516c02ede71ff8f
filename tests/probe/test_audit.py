"""The audit against arrangements whose faults are known: each fact says what it must, and a sound run says nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lossdoctor.probe.audit import LISTED, REPEAT, Auditor, audit
from lossdoctor.probe.neutrality import Autocast
from lossdoctor.probe.parameters import OUTSIDE


class Model(nn.Module):
    def __init__(self, teacher: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1))
        self.a_head = nn.Linear(8, 3)
        self.b_head = nn.Linear(8, 2)
        if teacher:
            self.teacher = copy.deepcopy(self.body).requires_grad_(False).eval()


SOUND = {
    "missing": [],
    "missing_count": 0,
    "missing_with_grad": 0,
    "missing_modules": [],
    "missing_whole": [],
    "twice": [],
    "twice_count": 0,
    "foreign": 0,
}
STILL = {"requires_grad": 0, "aliased": 0, "with_grad": 0, "in_optimizer": 0, "training": 0, "training_modules": 0}


def heads(model: Model) -> dict[str, nn.Module]:
    return {"a_head": model.a_head, "b_head": model.b_head}


def sgd(*modules: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for m in modules for p in m.parameters()], lr=0.1, **options)


def look(model: nn.Module, *optimizers: torch.optim.Optimizer, **more: Any) -> dict[str, Any]:
    given = more.pop("heads", None)
    facts = audit(model, heads(model) if given is None else given, optimizers, **more)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts, "plain JSON"
    return facts


def test_a_sound_run_has_nothing_to_tell() -> None:
    model = Model(teacher=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    ema = copy.deepcopy(model).requires_grad_(False)
    facts = look(model, torch.optim.AdamW(trained, lr=0.1), teacher=model.teacher, ema=ema)
    assert facts["optimizers"] == SOUND
    assert facts["teacher"] == {**STILL, "parameters": 4, "dtypes": {"float32": 4}}
    assert facts["ema"] == {
        "parameters": 13,
        "requires_grad": 0,
        "aliased": 0,
        "dtypes": {"float32": 13},
        "updates_between": 0,
    }
    head = {"trainable": 2, "frozen": 0, "in_optimizer": True, "weight_decay": 0.01, "lr": [0.1], "dtype": ["float32"]}
    assert facts["heads"] == {"a_head": head, "b_head": head}
    assert facts["weight_decay"] == {"default": 0.01}
    assert facts["frozen_parts"] == []
    assert facts["modes"] == {"model_training": True, "frozen_batchnorm": 0}
    assert facts["dtypes"] == {"float32": 9}, "the teacher's four are not the model's"
    assert facts["autocast"] is None
    assert facts["accumulation"] == {"backwards": 0}


def test_without_teacher_and_ema_they_are_not_spoken_of() -> None:
    facts = look(Model(), sgd(Model()))
    assert {"teacher", "ema"}.isdisjoint(facts)


# Optimizers


def test_a_head_in_no_optimizer_is_named_whole_and_a_part_of_a_module_is_not() -> None:
    model = Model()
    kept = [p for n, p in model.named_parameters() if not n.startswith(("b_head", "body.0.bias"))]
    model.b_head.weight.grad = torch.zeros(2, 8)
    found = look(model, torch.optim.SGD(kept, lr=0.1))["optimizers"]
    assert found == {
        **SOUND,
        "missing": ["body.0.bias", "b_head.weight", "b_head.bias"],
        "missing_count": 3,
        "missing_with_grad": 1,
        "missing_modules": ["body", "b_head"],
        "missing_whole": ["b_head"],
    }


def test_frozen_parameters_are_not_missed() -> None:
    model = Model()
    model.body.requires_grad_(False)
    facts = look(model, sgd(model.a_head, model.b_head), torch.optim.SGD([model.scale], lr=1.0))
    assert facts["optimizers"] == SOUND
    model.a_head.bias.requires_grad_(False)
    assert look(model, sgd(model))["heads"]["a_head"] | {"lr": None, "weight_decay": None} == {
        "trainable": 1,
        "frozen": 1,
        "in_optimizer": True,
        "weight_decay": None,
        "lr": None,
        "dtype": ["float32"],
    }


def test_a_parameter_that_two_optimizers_move_is_named() -> None:
    model = Model()
    found = look(model, sgd(model), sgd(model.a_head))["optimizers"]
    assert found == {**SOUND, "twice": ["a_head.weight", "a_head.bias"], "twice_count": 2}
    outside = nn.Parameter(torch.ones(()))
    two = [torch.optim.SGD([outside], lr=0.1) for _ in range(2)]
    assert look(model, sgd(model), *two)["optimizers"] == {**SOUND, "twice": [OUTSIDE], "twice_count": 1, "foreign": 1}


def test_an_optimizer_of_a_model_that_was_rebuilt_is_foreign() -> None:
    model = Model()
    optimizer = sgd(model)
    model.a_head = nn.Linear(8, 3)
    found = look(model, optimizer)["optimizers"]
    assert (found["foreign"], found["missing"]) == (2, ["a_head.weight", "a_head.bias"])
    assert found["missing_whole"] == ["a_head"]


def test_heads_outside_the_model_are_known_by_their_own_name() -> None:
    model, outside = Model(), nn.Linear(3, 3)
    given = {**heads(model), "extra": outside}
    found = look(model, sgd(model), heads=given)["optimizers"]
    assert found["missing"] == ["extra.weight", "extra.bias"]
    assert found["missing_modules"] == found["missing_whole"] == ["extra"]
    assert look(model, sgd(model, outside), heads=given)["optimizers"] == SOUND
    assert look(model, sgd(model, outside))["optimizers"]["foreign"] == 2


def test_counts_are_complete_where_names_are_cut_off() -> None:
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(LISTED)))
    found = look(model, torch.optim.SGD([nn.Parameter(torch.ones(()))], lr=0.1), heads={})["optimizers"]
    assert (len(found["missing"]), found["missing_count"]) == (LISTED, 2 * LISTED)


def test_tied_parameters_count_once_and_wrappers_are_looked_through() -> None:
    model = Model()
    model.b_head.weight = model.a_head.weight
    wrapped = torch.optim.swa_utils.AveragedModel(Model())
    assert look(model, sgd(Model()))["optimizers"]["missing_count"] == 8
    assert look(wrapped, sgd(Model()), heads={})["optimizers"]["missing"][0] == "scale"


def test_settings_of_groups_are_told_per_head() -> None:
    model = Model()
    groups = [
        {"params": [*model.body.parameters(), model.scale], "weight_decay": 0.05},
        {"params": [model.a_head.weight], "weight_decay": 0.2, "lr": 1.0},
        {"params": [model.a_head.bias], "weight_decay": 0.0},
        {"params": model.b_head.parameters(), "weight_decay": torch.tensor(0.0)},
    ]
    facts = look(model, torch.optim.AdamW(groups, lr=0.5))
    assert (facts["heads"]["a_head"]["weight_decay"], facts["heads"]["a_head"]["lr"]) == (pytest.approx(0.2), [0.5, 1])
    assert facts["heads"]["b_head"]["weight_decay"] == 0.0
    assert facts["weight_decay"]["default"] == 0.05, "of 57 elements, more than of any other group"
    bare = look(model, torch.optim.LBFGS(model.body.parameters()))
    assert bare["weight_decay"]["default"] is None
    assert (bare["heads"]["a_head"]["weight_decay"], bare["heads"]["a_head"]["in_optimizer"]) == (None, False)


# Teacher and average


def test_a_teacher_in_the_model_that_is_trained_is_not_missed_but_told() -> None:
    model = Model(teacher=True)
    model.teacher.requires_grad_(True).train()
    model.teacher[0].weight.grad = torch.zeros(8, 4)
    facts = look(model, sgd(model), teacher=model.teacher)
    told = {key: facts["teacher"][key] for key in ("requires_grad", "in_optimizer", "aliased", "with_grad")}
    assert told == {"requires_grad": 4, "in_optimizer": 4, "aliased": 0, "with_grad": 1}
    only_student = sgd(model.body, model.a_head, model.b_head)
    facts = look(model, only_student, teacher=model.teacher)
    assert facts["teacher"]["in_optimizer"] == 0
    assert facts["optimizers"]["missing"] == ["scale"], "that nobody moves the teacher is not a finding"


def registered_twice(model: Model) -> nn.Module:
    model.teacher = model.body
    return model.teacher


def shared_weights(model: Model) -> nn.Module:
    teacher = copy.deepcopy(model.body)
    for mine, theirs in zip(teacher, model.body, strict=True):
        mine._parameters.update(theirs._parameters)
    return teacher


def shared_storage(model: Model) -> nn.Module:
    teacher = copy.deepcopy(model.body).requires_grad_(False)
    for mine, theirs in zip(teacher.parameters(), model.body.parameters(), strict=True):
        mine.data = theirs.data
    return teacher


def frozen_after_the_fact(model: Model) -> nn.Module:
    model.teacher = model.body
    return model.teacher.requires_grad_(False)


class Follower(nn.Module):
    """A teacher that forgot to copy."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def wrapped_inside(model: Model) -> nn.Module:
    model.teacher = Follower(model.body)
    return model.teacher


ALIASES: list[Callable[[Model], nn.Module]] = [
    registered_twice,
    shared_weights,
    shared_storage,
    frozen_after_the_fact,
    wrapped_inside,
    lambda model: Follower(model.body),
    lambda model: nn.Sequential(model.body),
    lambda model: model,
]


@pytest.mark.parametrize("alias", ALIASES)
def test_a_teacher_that_is_the_student_shares_its_memory(alias: Callable[[Model], nn.Module]) -> None:
    model = Model()
    optimizer = sgd(model)
    teacher = alias(model)
    facts = look(model, optimizer, teacher=teacher, ema=teacher)
    assert facts["teacher"]["aliased"] == facts["teacher"]["parameters"] > 0
    assert facts["ema"]["aliased"] == facts["ema"]["parameters"]
    assert facts["optimizers"]["missing_count"] == 0


def test_a_compiled_teacher_is_the_one_in_the_model() -> None:
    model = Model(teacher=True)
    model.teacher.requires_grad_(True)
    facts = look(model, sgd(model), teacher=torch.compile(model.teacher, backend="eager"))
    assert (facts["teacher"]["aliased"], facts["teacher"]["in_optimizer"]) == (0, 4)


def test_a_backbone_that_both_share_and_nobody_trains_is_no_alias() -> None:
    model = Model()
    model.body.requires_grad_(False)
    teacher = nn.Sequential(model.body, copy.deepcopy(model.a_head).requires_grad_(False))
    assert look(model, sgd(model.a_head, model.b_head), teacher=teacher)["teacher"]["aliased"] == 0


def test_a_head_of_the_doctor_is_trained_whatever_module_it_lives_in() -> None:
    model = Model(teacher=True)
    model.teacher.requires_grad_(True)
    facts = look(model, sgd(model), heads={"inner": model.teacher[0]}, teacher=model.teacher)
    assert facts["teacher"]["aliased"] == 2


class StochasticDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5 if self.training else x


MODES = [
    (nn.Linear(2, 2), 0),
    (nn.LayerNorm(2), 0),
    (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 0),
    (nn.Dropout(0.1), 1),
    (nn.Dropout(0.0), 0),
    (nn.BatchNorm1d(2), 1),
    (nn.BatchNorm1d(2, track_running_stats=False), 0),
    (nn.InstanceNorm1d(2), 0),
    (nn.InstanceNorm1d(2, track_running_stats=True), 1),
    (nn.MultiheadAttention(2, 1, dropout=0.1), 1),
    (nn.MultiheadAttention(2, 1), 0),
    (nn.GRU(2, 2, num_layers=2, dropout=0.1), 1),
    (nn.GRU(2, 2), 0),
    (nn.RReLU(), 1),
    (StochasticDepth(), 1),
    (Model(), 2),
]


@pytest.mark.parametrize(("module", "matter"), MODES, ids=lambda value: type(value).__name__)
def test_training_mode_counts_where_it_changes_the_answer(module: nn.Module, matter: int) -> None:
    model = Model()
    module.train()
    teacher = look(model, sgd(model), teacher=module)["teacher"]
    assert (teacher["training"], teacher["training_modules"]) == (matter, len(list(module.modules())))
    teacher = look(model, sgd(model), teacher=module.eval())["teacher"]
    assert (teacher["training"], teacher["training_modules"]) == (0, 0)


# Modes and dtypes


def test_a_part_that_is_frozen_whole_is_told_and_a_copy_is_none() -> None:
    model = Model(teacher=True)
    model.body[0].requires_grad_(False)
    assert look(model, sgd(model), teacher=model.teacher)["frozen_parts"] == [], "its batch norm is trained"
    model.body.requires_grad_(False)
    assert look(model, sgd(model), teacher=model.teacher)["frozen_parts"] == ["body"]
    assert look(model, sgd(model))["frozen_parts"] == ["body", "teacher"]


def test_frozen_batchnorm_is_one_in_evaluation_inside_a_training_model() -> None:
    model = Model(teacher=True)
    optimizer = sgd(model)
    model.body.eval()
    assert look(model, optimizer, teacher=model.teacher)["modes"] == {"model_training": True, "frozen_batchnorm": 1}
    assert look(model, optimizer)["modes"]["frozen_batchnorm"] == 2, "a teacher the doctor does not know is a part"
    model.eval()
    assert look(model, optimizer)["modes"] == {"model_training": False, "frozen_batchnorm": 0}


def test_dtypes_are_told_everywhere() -> None:
    model, ema = Model(), Model().half()
    model.a_head.to(torch.bfloat16)
    model.b_head.weight.data = model.b_head.weight.data.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = Autocast.capture(torch.device("cpu"))
    facts = look(model, sgd(model), ema=ema, autocast=state, backwards=3)
    assert facts["dtypes"] == {"float32": 6, "bfloat16": 2, "float64": 1}
    assert facts["heads"]["a_head"]["dtype"] == ["bfloat16"]
    assert facts["heads"]["b_head"]["dtype"] == ["float64", "float32"]
    assert facts["ema"]["dtypes"] == {"float16": 9}
    assert facts["autocast"] == "bfloat16"
    assert facts["accumulation"] == {"backwards": 3}
    assert look(model, sgd(model), autocast=Autocast.capture(torch.device("cpu")))["autocast"] is None


def test_modules_without_parameters_and_without_memory() -> None:
    empty = look(nn.Identity(), sgd(nn.Linear(1, 1)), heads={}, teacher=nn.Identity(), ema=nn.Identity())
    assert empty["optimizers"] == {**SOUND, "foreign": 2}
    assert empty["teacher"]["parameters"] == empty["ema"]["parameters"] == 0
    with torch.device("meta"):
        model, teacher = Model(), Model()
    assert look(model, sgd(model), teacher=teacher)["teacher"]["aliased"] == 0, "nothing to share, so nothing shared"


def test_looking_leaves_no_trace() -> None:
    model = Model(teacher=True)
    optimizer, state, rng = sgd(model), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    modes, flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    look(model, optimizer, teacher=model.teacher)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    assert torch.equal(rng, torch.get_rng_state())
    assert modes == [m.training for m in model.modules()]
    assert flags == [p.requires_grad for p in model.parameters()]
    assert versions == [p._version for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())


# When it is taken


def changes(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Callable[[], object]]:
    return {
        "freeze": lambda: model.a_head.requires_grad_(False),
        "group": lambda: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(()))]}),
        "mode": model.eval,
        "teacher": model.teacher.train,
    }


@pytest.mark.parametrize("change", ["freeze", "group", "mode", "teacher"])
def test_what_changed_is_told_at_once_and_only_once(change: str) -> None:
    model = Model(teacher=True)
    optimizer = sgd(model.body, model.a_head, model.b_head)
    auditor = Auditor(model, heads(model), [optimizer], model.teacher)
    first = auditor.news(None, 1)
    assert first == audit(model, heads(model), [optimizer], model.teacher, backwards=1)
    assert auditor.news(None, 1) is None
    changes(model, optimizer)[change]()
    second = auditor.news(None, 1)
    assert second is not None
    assert second != first
    assert auditor.news(None, 1) is None


def test_precision_and_accumulation_are_news() -> None:
    model = Model()
    auditor = Auditor(model, {}, [sgd(model)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        state = Autocast.capture(torch.device("cpu"))
    told = [auditor.news(*given) for given in ((None, 1), (None, 4), (state, 4), (state, 4), (state, 1))]
    assert [facts and (facts["autocast"], facts["accumulation"]["backwards"]) for facts in told] == [
        (None, 1),
        (None, 4),
        ("bfloat16", 4),
        None,
        ("bfloat16", 1),
    ]


def test_what_only_a_walk_shows_is_told_at_the_next_one() -> None:
    model = Model()
    auditor = Auditor(model, {}, [sgd(model)])
    assert auditor.news(None, 1) is not None
    model.body[1].eval()
    told = [auditor.news(None, 1) is not None for _ in range(2 * REPEAT)]
    assert told.index(True) == REPEAT - 1
    assert told.count(True) == 1


def test_a_schedule_is_no_news() -> None:
    model = Model()
    optimizer = sgd(model, weight_decay=0.1)
    auditor = Auditor(model, heads(model), [optimizer])
    assert auditor.news(None, 1) is not None
    for step in range(3 * REPEAT):
        optimizer.param_groups[0]["lr"] = 1.0 / (step + 1)
        optimizer.param_groups[0]["weight_decay"] = 0.1 + step
        assert auditor.news(None, 1) is None
    model.a_head.requires_grad_(False)
    facts = auditor.news(None, 1)
    assert facts is not None
    assert facts["heads"]["b_head"]["lr"] == [1.0 / (3 * REPEAT)]
