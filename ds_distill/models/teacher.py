"""The frozen teacher: an encoder, with its masked-LM head where that teaches, which runs under no_grad."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.models.families.family import Family
from ds_distill.models.intermediates import LAST, LAST_HIDDEN, Site, run_encoder


class Targets(NamedTuple):
    """What a student is to match: the teacher's outputs, all in its dtype.

    It is a NamedTuple, because DeepSpeed looks into these on their way to the student.

    Attributes:
        states: [B, L, H] for each recorded site; of several teachers those of the first.
        decoder_input: [n, L, E], the decoder's input; None where no logits are wanted.
        decoder_weight: [V, E], the teacher's own storage, not a copy; None where decoder_input is.
        decoder_bias: [V], or None.
        others: Of each further teacher, the states that a term averages over teachers, by the first one's sites.
        teacher_weights: The weights of all teachers, the first one's first, which add up to 1.
    """

    states: dict[Site, Tensor]
    decoder_input: Tensor | None = None
    decoder_weight: Tensor | None = None
    decoder_bias: Tensor | None = None
    others: tuple[dict[Site, Tensor], ...] = ()
    teacher_weights: tuple[float, ...] = (1.0,)


class Teacher:
    """A frozen masked-LM model, or a bare encoder, in eval mode.

    It is not an nn.Module: as an attribute of the student or engine it must not enter parameters,
    checkpoints or `.train()`. Create it outside any `zero.Init` context and before an
    HfDeepSpeedConfig of stage 3, because its weights must be whole on every rank.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Freeze `model` in place; raise RuntimeError where its parameters are partitioned by ZeRO-3."""
        if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            raise RuntimeError(
                "the teacher was created inside zero.Init: its weights are partitioned; create it outside"
            )
        self.model = model.eval().requires_grad_(False)
        self._family = get_family(model)
        self.assert_frozen()

    @torch.no_grad()  # not inference_mode: the loss saves these tensors for a backward, which that mode forbids
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
        """Return what a student is to match on a batch.

        Args:
            input_ids: [B, L] int.
            attention_mask: [B, L] bool, true on real tokens, or [B, 1, L, L] bool, true where a
                query may see a key. None where every token is real, so that sdpa can take its
                fastest kernel.
            cu_seqlens: [n] int32. Beside a [B, 1, L, L] mask it has the same content, for
                models.varlen_attention.
            sites: What to record.
            head: Whether the student is to match logits too.
            masked_rows: [n] int64, the sequences whose logits are wanted; None for all.

        Raises:
            ValueError: L > max_positions.
        """
        if input_ids.shape[-1] > self.max_positions:
            raise ValueError(
                f"sequences of {input_ids.shape[-1]} tokens: the teacher has {self.max_positions} positions"
            )
        hidden, states = run_encoder(self.model, input_ids, attention_mask, cu_seqlens, sites)
        if not (head and self.has_head):
            return Targets(states)
        hidden = hidden if masked_rows is None else hidden.index_select(0, masked_rows)
        return Targets(states, self._family.mlm_transform(self.model, hidden), self.decoder_weight, self.decoder_bias)

    @property
    def config(self) -> PretrainedConfig:
        return self.model.config

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """The model, as `Ensemble.models` has several."""
        return (self.model,)

    @property
    def has_head(self) -> bool:
        """Whether its targets have what its logits are made of."""
        return self._family.has_head(self.model)

    @property
    def decoder_weight(self) -> Tensor:
        """[V, H], the teacher's own storage, not a copy."""
        return self._family.get_decoder(self.model).weight

    @property
    def decoder_bias(self) -> Tensor | None:
        """[V], or None."""
        return self._family.get_decoder(self.model).bias

    @property
    def max_positions(self) -> int:
        return self._family.positions(self.config)

    def assert_frozen(self) -> None:
        """Raise RuntimeError if any module is in train mode or any parameter requires a gradient."""
        for name, module in self.model.named_modules():
            if module.training:
                raise RuntimeError(
                    f"the teacher's module {name or 'root'} is in train mode: its dropout would be noise in the targets"
                )
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                raise RuntimeError(f"the teacher's parameter {name} requires a gradient: the teacher must stay frozen")


def needed_part(model: PreTrainedModel, sites: Sequence[Site], *, head: bool) -> PreTrainedModel:
    """Return what a teacher has to run; the rest of its memory is free once nothing else refers to `model`.

    Without the head, that is the bare encoder up to the highest layer that is recorded. The layers above it are taken
    out of `model`, in place. Only `LAST` stands for the encoder's output, after a final norm where a family has one, so
    an encoder that has it recorded is left whole.

    Args:
        model: A masked-LM model or a bare encoder.
        sites: What is recorded.
        head: Whether its logits are needed.
    """
    if head:
        return model
    family = get_family(model)
    encoder = family.get_encoder(model)
    if all(site.layer != LAST for site in sites):
        _keep_layers(family, encoder, 1 + max((0, *(site.layer for site in sites))))
        if family.final_norm:  # transformers gives its output as that of the highest layer
            encoder.set_submodule(family.final_norm, nn.Identity().eval())
    return encoder


def _keep_layers(family: Family, encoder: PreTrainedModel, count: int) -> None:
    """Take the layers above the first `count` out of an encoder, in place."""
    layers = cast(nn.ModuleList, encoder.get_submodule(family.layers_path))
    if not family.names.groups:
        del layers[count:]
        return
    # Which weights a layer shares depends on the number of layers and of groups, so each kept layer becomes a group.
    config = copy.deepcopy(encoder.config)
    kept = nn.ModuleList(layers[place] for place in family.layer_places(config)[:count])
    setattr(config, family.names.depth, count)
    setattr(config, family.names.groups, count)
    encoder.set_submodule(family.layers_path, kept)
    for module in encoder.modules():
        if hasattr(module, "config"):
            cast(Any, module).config = config


def weights_fingerprint(model: PreTrainedModel) -> str:
    """Return the hex sha256 of a model's weights: names, dtypes, shapes and bytes, tied weights once."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        # numpy has no bfloat16, so the raw bytes are hashed; its types call an array a Buffer from
        # Python 3.12 on
        data = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        digest.update(data)  # type: ignore[arg-type]
    return digest.hexdigest()
