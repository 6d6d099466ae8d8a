"""What the student is asked to match. Imports torch only: a bare GPU machine can run it."""

from ds_distill.kernels.fused_linear import fused_linear_distillation_loss
from ds_distill.kernels.vocabulary_projection import VocabularyProjection
from ds_distill.losses.matching import cosine_distance_sum

__all__ = ["VocabularyProjection", "cosine_distance_sum", "fused_linear_distillation_loss"]
