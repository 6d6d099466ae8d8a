"""The losses of a distillation.

The matching losses and the fused vocabulary loss, which are importable from here, need only torch, so that a GPU
machine with nothing else can run them.
"""

from ds_distill.kernels.fused_linear import fused_linear_distillation_loss
from ds_distill.kernels.vocabulary_projection import VocabularyProjection
from ds_distill.losses.matching import cosine_distance_sum
from ds_distill.losses.relations import attention_score_mse, relation_kl

__all__ = [
    "VocabularyProjection",
    "attention_score_mse",
    "cosine_distance_sum",
    "fused_linear_distillation_loss",
    "relation_kl",
]
