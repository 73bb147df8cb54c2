"""Pure functions the methods are made of: statistics, alignment losses, enhancement, priors.

Shapes: B images, N batch-norm layers, C channels of a layer.
"""

from __future__ import annotations

from datafree.losses.answers import (
    Heads,
    class_logits,
    class_rows,
    first_logits,
    parts,
    relative_error,
    values,
)
from datafree.losses.attention import (
    attention_distance,
    differential_entropy,
    patch_similarity,
)
from datafree.losses.correlation import correlation_inhibition
from datafree.losses.gradients import (
    gradient_diversity,
    gradient_matching,
    gradient_similarity,
    set_gradient,
    set_matching,
)
from datafree.losses.images import image_norm, low_pass, total_variation
from datafree.losses.inputs import input_part, pack, unpack
from datafree.losses.logits import (
    disagreement,
    distillation,
    inception_score_loss,
    margin_loss,
    soft_cross_entropy,
)
from datafree.losses.normal import clipped_normal_mean
from datafree.losses.statistics import (
    STATISTICS_EPS,
    batch_distance,
    batch_statistics,
    enhancement_weights,
    input_distance,
    kl_distance,
    sample_statistics,
    slack_distance,
    slack_margin,
    standardized_distance,
    values_distance,
    variance_distance,
)

__all__ = [
    "STATISTICS_EPS",
    "Heads",
    "attention_distance",
    "batch_distance",
    "batch_statistics",
    "class_logits",
    "class_rows",
    "clipped_normal_mean",
    "correlation_inhibition",
    "differential_entropy",
    "disagreement",
    "distillation",
    "enhancement_weights",
    "first_logits",
    "gradient_diversity",
    "gradient_matching",
    "gradient_similarity",
    "image_norm",
    "inception_score_loss",
    "input_distance",
    "input_part",
    "kl_distance",
    "low_pass",
    "margin_loss",
    "pack",
    "parts",
    "patch_similarity",
    "relative_error",
    "sample_statistics",
    "set_gradient",
    "set_matching",
    "slack_distance",
    "slack_margin",
    "soft_cross_entropy",
    "standardized_distance",
    "total_variation",
    "unpack",
    "values",
    "values_distance",
    "variance_distance",
]
