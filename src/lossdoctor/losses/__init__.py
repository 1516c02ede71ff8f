"""The three losses this library knows the meaning of: correct, documented, usable on their own."""

from lossdoctor.losses.distillation import DINOLoss, distillation_cross_entropy
from lossdoctor.losses.flow_matching import flow_matching_loss
from lossdoctor.losses.kl import gaussian_kl

__all__ = ["DINOLoss", "distillation_cross_entropy", "flow_matching_loss", "gaussian_kl"]
