"""The rules: one file per rule, one line per rule here. `diagnose` asks them, `lossdoctor explain` shows their page."""

from __future__ import annotations

from lossdoctor.rules.bal801_ratio_out_of_band import RatioOutOfBand
from lossdoctor.rules.bal802_balancer_stopped import BalancerStopped
from lossdoctor.rules.cnd601_condition_unused import ConditionUnused
from lossdoctor.rules.cnd602_null_rate import NullRate
from lossdoctor.rules.dst201_sharp_teacher import SharpTeacher
from lossdoctor.rules.dst202_saturated_student import SaturatedStudent
from lossdoctor.rules.dst203_uniform_teacher import UniformTeacher
from lossdoctor.rules.dst204_single_prototype import SinglePrototype
from lossdoctor.rules.dst205_frozen_teacher import FrozenTeacher
from lossdoctor.rules.dst206_teacher_is_student import TeacherIsStudent
from lossdoctor.rules.dst207_teacher_learns import TeacherLearns
from lossdoctor.rules.dst208_temperature_order import TemperatureOrder
from lossdoctor.rules.dst209_not_the_cross_entropy import NotTheCrossEntropy
from lossdoctor.rules.finding import (
    Cause,
    Clear,
    Evidence,
    Finding,
    Fired,
    Fix,
    Message,
    Outcome,
    Skipped,
    say,
)
from lossdoctor.rules.grd101_loss_without_gradient import LossWithoutGradient
from lossdoctor.rules.grd102_weak_gradient import WeakGradient
from lossdoctor.rules.grd103_dominant_gradient import DominantGradient
from lossdoctor.rules.grd104_opposed_gradients import OpposedGradients
from lossdoctor.rules.grd105_unreached_head import UnreachedHead
from lossdoctor.rules.grd106_ascending_loss import AscendingLoss
from lossdoctor.rules.grd107_clip_always_active import ClipAlwaysActive
from lossdoctor.rules.grd108_cut_off_loss import CutOffLoss
from lossdoctor.rules.num901_non_finite import NonFinite
from lossdoctor.rules.num902_exact_zero_loss import ExactZeroLoss
from lossdoctor.rules.num903_half_precision_overflow import HalfPrecisionOverflow
from lossdoctor.rules.opt701_head_not_moving import HeadNotMoving
from lossdoctor.rules.opt702_not_in_optimizer import NotInOptimizer
from lossdoctor.rules.opt703_head_weight_decay import HeadWeightDecay
from lossdoctor.rules.opt704_update_too_large import UpdateTooLarge
from lossdoctor.rules.opt705_ema_stuck import EmaStuck
from lossdoctor.rules.opt706_ema_too_slow import EmaTooSlow
from lossdoctor.rules.opt707_lost_accumulation import LostAccumulation
from lossdoctor.rules.plugged import NotLoaded, added, origin
from lossdoctor.rules.pre001_function_failed import FunctionFailed
from lossdoctor.rules.pst301_prior_not_approached import PriorNotApproached
from lossdoctor.rules.pst302_off_prior_sample import OffPriorSample
from lossdoctor.rules.pst303_scaled_kl import ScaledKl
from lossdoctor.rules.pst304_kl_on_sample import KlOnSample
from lossdoctor.rules.pst305_variance_collapse import VarianceCollapse
from lossdoctor.rules.pst306_posterior_collapse import PosteriorCollapse
from lossdoctor.rules.pst307_kl_reduction import KlReduction
from lossdoctor.rules.pst308_kl_unused import KlUnused
from lossdoctor.rules.pst309_unclamped_logvar import UnclampedLogvar
from lossdoctor.rules.rnk001_ranks_share_data import RanksShareData
from lossdoctor.rules.rnk002_ranks_share_noise import RanksShareNoise
from lossdoctor.rules.rnk003_ranks_apart import RanksApart
from lossdoctor.rules.rule import Rule
from lossdoctor.rules.run001_too_short import TooShort
from lossdoctor.rules.run002_steps_go_back import StepsGoBack
from lossdoctor.rules.run003_never_measured_in_full import NeverMeasuredInFull
from lossdoctor.rules.smp501_endpoint_not_improving import EndpointNotImproving
from lossdoctor.rules.smp502_wrong_order import WrongOrder
from lossdoctor.rules.smp503_endpoint_off_scale import EndpointOffScale
from lossdoctor.rules.smp504_endpoint_off_distribution import EndpointOffDistribution
from lossdoctor.rules.smp505_missing_path_derivative import MissingPathDerivative
from lossdoctor.rules.smp506_inference_field_differs import InferenceFieldDiffers
from lossdoctor.rules.vel401_misaligned_velocity import MisalignedVelocity
from lossdoctor.rules.vel402_speed_mismatch import SpeedMismatch
from lossdoctor.rules.vel403_edge_degradation import EdgeDegradation
from lossdoctor.rules.vel404_starved_time_bins import StarvedTimeBins
from lossdoctor.rules.vel405_time_ignored import TimeIgnored
from lossdoctor.rules.vel406_time_reversed import TimeReversed
from lossdoctor.rules.vel407_off_scale_latent import OffScaleLatent
from lossdoctor.rules.vel408_shrinking_latent import ShrinkingLatent
from lossdoctor.rules.vel409_broadcast_target import BroadcastTarget
from lossdoctor.rules.vel410_structureless_latent import StructurelessLatent
from lossdoctor.rules.vel411_target_off_path import TargetOffPath
from lossdoctor.rules.view import RunView

__all__ = [
    "RULES",
    "Cause",
    "Clear",
    "Evidence",
    "Finding",
    "Fired",
    "Fix",
    "Message",
    "NotLoaded",
    "Outcome",
    "Rule",
    "RunView",
    "Skipped",
    "every_rule",
    "origin",
    "say",
]

RULES: tuple[type[Rule], ...] = (
    RatioOutOfBand,
    BalancerStopped,
    ConditionUnused,
    NullRate,
    SharpTeacher,
    SaturatedStudent,
    UniformTeacher,
    SinglePrototype,
    FrozenTeacher,
    TeacherIsStudent,
    TeacherLearns,
    TemperatureOrder,
    NotTheCrossEntropy,
    LossWithoutGradient,
    WeakGradient,
    DominantGradient,
    OpposedGradients,
    UnreachedHead,
    AscendingLoss,
    ClipAlwaysActive,
    CutOffLoss,
    NonFinite,
    ExactZeroLoss,
    HalfPrecisionOverflow,
    HeadNotMoving,
    NotInOptimizer,
    HeadWeightDecay,
    UpdateTooLarge,
    EmaStuck,
    EmaTooSlow,
    LostAccumulation,
    FunctionFailed,
    PriorNotApproached,
    OffPriorSample,
    ScaledKl,
    KlOnSample,
    VarianceCollapse,
    PosteriorCollapse,
    KlReduction,
    KlUnused,
    UnclampedLogvar,
    RanksShareData,
    RanksShareNoise,
    RanksApart,
    TooShort,
    StepsGoBack,
    NeverMeasuredInFull,
    EndpointNotImproving,
    WrongOrder,
    EndpointOffScale,
    EndpointOffDistribution,
    MissingPathDerivative,
    InferenceFieldDiffers,
    MisalignedVelocity,
    SpeedMismatch,
    EdgeDegradation,
    StarvedTimeBins,
    TimeIgnored,
    TimeReversed,
    OffScaleLatent,
    ShrinkingLatent,
    BroadcastTarget,
    StructurelessLatent,
    TargetOffPath,
)
"""Every rule of ours, sorted by code."""


def every_rule() -> tuple[type[Rule], ...]:
    """Ours, and behind them those of other packages, which the first call imports; see `docs/plugins.md`."""
    return (*RULES, *added(RULES))
