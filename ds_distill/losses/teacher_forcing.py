"""Local regression: single layers of a student run on the teacher's states, and the gradient ends in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PretrainedConfig

from ds_distill.models.attention_mask import make_attention_mask
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.intermediates import EMBEDDINGS, LAST, Site
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError

if TYPE_CHECKING:
    from ds_distill.losses.objective import Objective


class TeacherForcing:
    """Gives each of some student layers the teacher's input to the span that this layer stands for.

    The span of student layer l ends at the teacher layer that the terms pair with l, and begins after the one that they
    pair with l - 1. The first one begins after the embeddings.

    Attributes:
        inputs: For each student layer that runs, where the teacher's states that it reads are recorded.

    Source: Sun et al. 2020 (MobileBERT), section 3.6 (progressive knowledge transfer), with the teacher's states as
    inputs in place of those of the student's layers below.
    """

    def __init__(self, inputs: Mapping[int, Site], depth: int):
        """Make it.

        Args:
            inputs: As above.
            depth: The student's number of layers.
        """
        self.inputs, self._last = dict(inputs), depth - 1

    def __call__(
        self, model: Any, teacher: Mapping[Site, Tensor], attention_mask: Tensor | None, cu_seqlens: Tensor | None
    ) -> dict[Site, Tensor]:
        """Return the output [B, L, H] of each layer that runs, by site.

        Args:
            model: The student.
            teacher: The teacher's states.
            attention_mask: As of `run_encoder`.
            cu_seqlens: As of `run_encoder`.
        """
        family = get_family(model)
        layers, norm, encoder = family.get_layers(model), family.get_final_norm(model), family.get_encoder(model)
        options = {} if cu_seqlens is None else {"cu_seq_lens_q": cu_seqlens}
        dtype, outputs = next(model.parameters()).dtype, {}
        masks: Any = make_attention_mask(model, attention_mask, next(iter(teacher.values())))
        for number, site in self.inputs.items():
            layer, hidden = layers[number], teacher[site].to(dtype)
            mask = masks[layer.attention_type] if isinstance(masks, dict) else masks
            output = layer(hidden, mask, **family.layer_inputs(encoder, layer, hidden), **options)
            output = output[0] if isinstance(output, tuple) else output
            is_last = number == self._last
            outputs[Site("hidden", LAST if is_last else number)] = norm(output) if norm and is_last else output
        return outputs


def force_teacher(
    objective: Objective, layers: Sequence[int], student: PretrainedConfig, teacher: PretrainedConfig, key: str
) -> None:
    """Have an objective run only some layers of its student, each on the teacher's states.

    Its terms then compare the outputs of these layers alone.

    Args:
        objective: The objective, all of whose terms compare hidden states.
        layers: The student's layers, from 0.
        student: The student's config.
        teacher: The teacher's config.
        key: The stage, for errors.

    Raises:
        UserError: The widths differ, a term compares something else, or the terms leave a layer's span open.
    """
    family = get_family_by_type(student.model_type)
    if not family.layers_stand_alone:
        shared = "weights" if family.names.groups else "relative positions"
        raise UserError(
            f"{key}.teacher_forced: the layers of {with_article(family.name)} do not run one by one, since they "
            f"share {shared}; leave it out"
        )
    ours, theirs = (get_family_by_type(config.model_type).dims(config) for config in (student, teacher))
    if ours.width != theirs.width:
        raise UserError(
            f"{key}.teacher_forced: a student layer of width {ours.width} cannot read the teacher's states of width "
            f"{theirs.width}; leave student.hidden_size out, or teacher_forced"
        )
    ends: dict[int, int] = {}
    for name, match in objective.named_matches():
        for low, high in match.sites:
            if low.quantity != "hidden" or high.quantity != "hidden":
                raise UserError(
                    f"{key}.teacher_forced: the term {name} compares {low.quantity}, where only hidden states can be "
                    "compared; give losses: {match: […]} without it in this stage"
                )
            end = high.layer % theirs.depth
            if ends.setdefault(low.layer % ours.depth, end) != end:
                raise UserError(
                    f"{key}.teacher_forced: the terms pair student layer {low.layer % ours.depth} with two layers of "
                    "the teacher, so the span that it stands for is not clear; keep one of them"
                )
        match.sites = [pair for pair in match.sites if pair[0].layer % ours.depth in layers]
        if not match.sites:
            raise UserError(
                f"{key}.teacher_forced: the term {name} compares none of the learnable layers {list(layers)}; set "
                "cosine: 0 or give other layers under losses of this stage"
            )
    inputs: dict[int, Site] = {}
    for layer in layers:
        if layer not in ends or (layer > 0 and layer - 1 not in ends):
            missing = layer if layer not in ends else layer - 1
            raise UserError(
                f"{key}.teacher_forced: no term pairs student layer {missing} with a layer of the teacher, which is "
                f"where the span of student layer {layer} {'ends' if missing == layer else 'begins'}; give layers: "
                "mapped, or pairs with it"
            )
        inputs[layer] = Site("hidden", ends[layer - 1]) if layer else EMBEDDINGS
        if layer and ends[layer - 1] >= ends[layer]:
            raise UserError(
                f"{key}.teacher_forced: student layer {layer} is paired with the teacher's layer {ends[layer]}, and "
                f"the layer below with {ends[layer - 1]}: spans must follow each other; give other pairs"
            )
    objective.force(TeacherForcing(inputs, ours.depth))
