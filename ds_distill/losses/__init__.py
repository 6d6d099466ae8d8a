"""What the student is asked to match. Imports torch only: a bare GPU machine can run it."""

from ds_distill.losses.cosine import cosine_distance_sum
from ds_distill.losses.projection import VocabularyProjection
from ds_distill.losses.vocabulary import fused_vocabulary_loss

__all__ = ["VocabularyProjection", "cosine_distance_sum", "fused_vocabulary_loss"]
