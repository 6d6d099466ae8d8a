"""The module that the engine runs: the model and its whole loss in one forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ds_distill.losses import VocabularyProjection, cosine_distance_sum
from ds_distill.models.families import family_of
from ds_distill.recipe import Losses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Objective(nn.Module):
    """A masked-LM model with its triple loss or, without a teacher, with the masked-LM loss alone.

    Sums are divided by the counts of the *global* batch, so the gradient does not depend on how the
    batch is divided among ranks and accumulation steps. Means of means do depend on it, since
    DistilBERT's own counts differ from block to block.
    """

    def __init__(self, model: PreTrainedModel, losses: Losses, world_size: int, teacher_width: int | None = None):
        """Put the vocabulary loss in place of the model's decoder.

        Args:
            model: The masked-LM model.
            losses: The recipe's losses.
            world_size: The number of ranks.
            teacher_width: The teacher's hidden size. Where it differs from the model's, the cosine
                loss compares a learned projection of the model's hidden states. The projection is
                trained and checkpointed, but is no part of the model.
        """
        super().__init__()
        self.model = model
        self.losses = losses
        self.world_size = world_size
        self.passes = "torch"  # how the vocabulary loss passes over its logits, see fused_linear_distillation_loss
        self.distance = cosine_distance_sum
        self.family = family_of(model)
        parent, name = self.family.decoder_parent_and_name(model)
        setattr(parent, name, VocabularyProjection.replacing(getattr(parent, name)))
        width = getattr(parent, name).in_features
        self.widen = None
        if teacher_width and teacher_width != width and losses.cosine:
            self.widen = nn.Linear(width, teacher_width, bias=False)
            nn.init.eye_(self.widen.weight)  # a narrower student starts as the teacher's first coordinates

    @property
    def trunk_name(self) -> str:
        """The prefix of the names of all parameters outside the masked-LM head."""
        return f"model.{self.family.trunk}."

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        labels: Tensor,
        counts: tuple[int, int] | None = None,
        teacher: tuple | None = None,
        cu_seqlens: Tensor | None = None,
    ):
        """Return the loss and its sums or, without counts, evaluate.

        Args:
            input_ids: [B, L] int64.
            attention_mask: [B, L] or [B, 1, L, L] bool, or None where all tokens are real. A real
                token always sees itself and padding never does.
            labels: [B, L] int64.
            counts: The real and masked tokens of the global batch.
            teacher: (hidden [B, L, H], decoder_input [B, L, H], decoder_weight [V, H], decoder_bias
                [V] or None), or None for masked-LM only.
            cu_seqlens: For a batch whose documents do not see each other, see
                data.batch.compute_cu_seqlens. It is given beside the mask, for models.attention.

        Returns:
            (loss, sums): the scalar whose gradient the engine averages over ranks, and the detached
            sums [kl, mlm, cosine]. Without counts: [masked-LM loss, correct predictions, tokens],
            summed over the masked tokens.
        """
        more = {} if cu_seqlens is None else {"cu_seq_lens_q": cu_seqlens}
        hidden = self.family.part(self.model, "trunk")(
            input_ids=input_ids, attention_mask=attention_mask, **more
        ).last_hidden_state
        projection = self.family.part(self.model, "decoder")
        if counts is None:
            at = labels >= 0
            logits = projection(self.family.transform(self.model, hidden[at])).float()
            loss = torch.nn.functional.cross_entropy(logits, labels[at], reduction="sum")
            return torch.stack([loss.double(), (logits.argmax(-1) == labels[at]).sum().double(), at.sum().double()])
        x = self.losses
        real, masked = counts
        decoder_input = self.family.transform(self.model, hidden).flatten(0, 1)
        t_hidden, t_head, t_weight, t_bias = teacher or (None, None, None, None)
        real_tokens = attention_mask
        if attention_mask is not None and attention_mask.dim() == 4:
            real_tokens = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)
        # the engine averages over ranks, but these sums need the sum
        scale = float(self.world_size)
        loss, kl_sum, mlm_sum = projection(
            decoder_input,
            t_head.flatten(0, 1) if t_head is not None else None,
            t_weight,
            t_bias,
            labels.flatten(),
            temperature=x.temperature,
            kl_weight=scale * x.kl / max(masked if x.kl_tokens == "masked" else real, 1) if teacher else 0.0,
            mlm_weight=scale * x.mlm / max(masked, 1),
            kl_tokens=x.kl_tokens,
            token_mask=real_tokens.flatten() if real_tokens is not None else None,
            passes=self.passes,
        )
        cosine_sum = torch.zeros_like(kl_sum)
        if teacher and x.cosine:
            cosine = self.distance(hidden if self.widen is None else self.widen(hidden), t_hidden, real_tokens)
            loss = loss + cosine * (scale * x.cosine / real)
            cosine_sum = cosine.detach()
        return loss, torch.stack([kl_sum, mlm_sum, cosine_sum])
