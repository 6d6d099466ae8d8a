"""Several teachers in the place of one: the mean of their logits, and their states side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.families import get_family_by_type
from ds_distill.models.intermediates import LAST, LAST_HIDDEN, Site
from ds_distill.models.teacher import Targets, Teacher


class Ensemble:
    """Frozen teachers with one vocabulary, of any widths and depths.

    The mean Σ w_k (W_k h_k + b_k) of their logits is one product, cat(W_k) · cat(w_k h_k) + Σ w_k b_k, so the losses
    take it for the logits of one teacher. What lies inside comes from the first teacher, but for the states that a
    term averages over all.
    """

    def __init__(self, teachers: Sequence[Teacher], weights: Sequence[float], averaged: Sequence[Site] = ()):
        """Join the teachers.

        Args:
            teachers: The teachers, of one dtype and on one device; the decoders have the same tokens.
            weights: Their weights, which add up to 1.
            averaged: The first teacher's sites at which the others are recorded too.
        """
        self.teachers, self.weights, self.averaged = tuple(teachers), tuple(weights), frozenset(averaged)
        self.has_head = all(teacher.has_head for teacher in teachers)
        self.decoder_weight: Tensor | None = None
        self.decoder_bias: Tensor | None = None
        if self.has_head:
            self.decoder_weight = torch.cat([teacher.decoder_weight for teacher in teachers], dim=1)
            dtype = self.decoder_weight.dtype
            wide = torch.promote_types(dtype, torch.float32)
            biases = [
                weight * teacher.decoder_bias.to(wide)
                for weight, teacher in zip(weights, teachers, strict=True)
                if teacher.decoder_bias is not None
            ]
            if biases:
                self.decoder_bias = torch.stack(biases).sum(0).to(dtype)

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """The teachers' models, the first one's first."""
        return tuple(teacher.model for teacher in self.teachers)

    def targets(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        sites: Sequence[Site] = (LAST_HIDDEN,),
        *,
        head: bool = True,
        masked_rows: Tensor | None = None,
    ) -> Targets:
        """Return what a student is to match on a batch; the arguments are those of `Teacher.targets`."""
        first, found, head = self.teachers[0].config, [], head and self.has_head
        for number, teacher in enumerate(self.teachers):
            asked = tuple(site for site in sites if not number or site in self.averaged)
            if not (asked or head):  # as in a stage that compares hidden states alone
                found.append(Targets({}))
                continue
            own = counterparts(asked, first, teacher.config)
            inside = tuple(dict.fromkeys(own))
            targets = teacher.targets(input_ids, attention_mask, cu_seqlens, inside, head=head, masked_rows=masked_rows)
            states = {site: targets.states[there] for site, there in zip(asked, own, strict=True)}
            found.append(targets._replace(states=states))
        others = tuple(targets.states for targets in found[1:])
        if not head:
            return Targets(found[0].states, others=others, teacher_weights=self.weights)
        inputs = (targets.decoder_input for targets in found)
        parts = [weight * part for weight, part in zip(self.weights, inputs, strict=True) if part is not None]
        hidden = torch.cat(parts, dim=-1)
        return Targets(found[0].states, hidden, self.decoder_weight, self.decoder_bias, others, self.weights)

    def assert_frozen(self) -> None:
        """Do as `Teacher.assert_frozen` does, for each teacher."""
        for teacher in self.teachers:
            teacher.assert_frozen()


def counterparts(sites: Sequence[Site], first: PretrainedConfig, other: PretrainedConfig) -> tuple[Site, ...]:
    """Return the sites at the same shares of another teacher's depth: of 12 layers, the last three are the last of 4.

    Args:
        sites: The first teacher's sites.
        first: The first teacher's config.
        other: The other's config.
    """
    depth, other_depth = (get_family_by_type(config.model_type).dims(config).depth for config in (first, other))
    if depth == other_depth:
        return tuple(sites)
    found = []
    for site in sites:
        layer = (
            site.layer
            if site.layer < 0 or site.quantity == "embeddings"
            else -(-(site.layer + 1) * other_depth // depth) - 1
        )
        last = site.quantity == "hidden" and layer == other_depth - 1  # else a layer's own, also in the last one
        found.append(site._replace(layer=LAST if last else layer))
    return tuple(found)
