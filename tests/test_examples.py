"""Every example runs, and the one of the README gets all metrics with its five added lines."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from lossdoctor.report.digest import TROUBLES

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))

EXPECTED = """
grad/flow grad/kl grad/dino grad/total grad_weighted/flow grad_share/kl grad_cos/dino|flow grad_module/flow/z_head
weight/flow loss/flow loss/total descent/flow step/z_head_update_ratio step/z_head_rms_update step/z_head_grad_norm
lr/z_head wd/z_head ent/teacher ent/student ent/teacher_norm ent/student_norm ent/teacher_marginal ent/teacher_mi
distill/kl distill/loss_ratio distill/agreement distill/max_logit_over_temp distill/feature_rank mu/abs_mean mu/rms
logvar/mean std/mean std/min std/max z_init/mean z_init/var z_init/std_per_dim_mean kl/per_dim kl/ratio
kl/beta_per_dim posterior/active_units posterior/snr flow/nmse flow/cos flow/speed_ratio flow/nmse_t0 flow/cos_t9
flow/count_t5 flow/t_min flow/t_max flow/t_unique flow/cond_gain_cos flow/cond_ratio flow/time_ratio
flow/time_reversal flow/field_mismatch flow/target_mismatch flow/nmse_zero flow/nmse_mean flow/z0_std flow/z1_std
flow/z1_mean_abs flow/z1_std_spread flow/endpt_rmse@8 flow/endpt_rmse@64 flow/endpt_rmse_shuffled@8
flow/endpt_rmse_heun@8 flow/ode_error@8 flow/ode_order flow/endpt_sw@8 flow/endpt_sw_floor flow/endpt_energy@8
flow/endpt_energy_floor flow/endpt_std_ratio flow/straightness
""".split()


HIDDEN = {
    "losses_autoencoder_kl": "kl/ratio std/mean posterior/snr grad_cos/kl|rec",
    "losses_crossflow": "kl/ratio flow/cos flow/time_ratio flow/endpt_sw@8 grad_module/flow/mu",
    "losses_dino": "ent/teacher_mi distill/loss_ratio teacher/moved grad_module/dino/head",
    "losses_lightningdit": "flow/cos flow/cond_ratio flow/field_mismatch flow/endpt_rmse@64 grad_cos/cos|flow",
    "losses_repa": "flow/cos flow/cond_ratio flow/field_mismatch flow/endpt_rmse@64 grad_cos/flow|repa",
}
"""Metrics each of the programs whose losses lie inside functions must have."""
FRAMEWORKS = ("accelerate_loop", "lightning_module", "transformers_trainer")
pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec.*LeafSpec.*:FutureWarning"),
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(path, tmp_path, monkeypatch)
    doctor = names["callback"].doctor if "callback" in names else names["doctor"]
    doctor.close()
    assert not [event for event in doctor.run.events if event["kind"] in TROUBLES]
    if path.stem in HIDDEN:
        missing = set(HIDDEN[path.stem].split()) - set(doctor.run)
        assert not missing, sorted(doctor.run)
        diagnosis = doctor.diagnose()
        assert diagnosis.worst() in (None, "info"), [str(finding.message) for finding in diagnosis.findings]
        assert len(diagnosis.clear) > 15
    if path.stem in FRAMEWORKS:
        assert doctor.run["flow/cos"].values[-1] > 0.5, "and it really trains"
        assert {"grad/kl", "grad_cos/flow|kl", "grad/clip_ratio", "flow/cond_ratio"} <= set(doctor.run)
        plain = run(without_doctor(path, tmp_path), tmp_path, monkeypatch)
        trained, alone = names["model"].state_dict(), plain["model"].state_dict()
        assert trained.keys() == alone.keys()
        assert all(torch.equal(trained[name], alone[name]) for name in trained)
    if path.stem == "three_losses":
        missing = set(EXPECTED) - names["doctor"].ret.keys()
        assert not missing
        assert names["doctor"].ret["flow/cos"] > 0.5, "and it really trains"


def test_the_wrong_direction_of_time_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text((ROOT / "examples" / "losses_repa.py").read_text("utf-8").replace("t_source=1.0,", ""), "utf-8")
    doctor = run(wrong, tmp_path, monkeypatch)["doctor"]
    doctor.close()
    assert doctor.diagnose().worst() == "warning"
    assert "SMP501" in {finding.code for finding in doctor.diagnose().findings}


def run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(folder)
    names = runpy.run_path(str(path))
    if path.stem == "accelerate_loop":
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    return names


def without_doctor(path: Path, folder: Path) -> Path:
    """The same script without the lines it added, and with those it changed as they were."""
    lines = path.read_text(encoding="utf-8").splitlines()
    assert 0 < sum(line.endswith("# added") for line in lines) <= 5
    kept = [re.sub(r"\S.*# was: (.*)", r"\1", line) for line in lines if not line.endswith("# added")]
    plain = folder / path.name
    plain.write_text("\n".join(kept), encoding="utf-8")
    assert "lossdoctor" not in plain.read_text(encoding="utf-8")
    return plain


def test_the_readme_shows_the_example_as_it_is() -> None:
    code = (ROOT / "examples" / "three_losses.py").read_text(encoding="utf-8")
    shown = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    assert shown[1].strip() in code
    assert code.count("# added") == 5
    assert code.count("# was: ") == 1
