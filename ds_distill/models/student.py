"""The student: a smaller encoder, of its teacher's family or another, initialized from the teacher's weights.

Source: Sanh et al. 2019, section 2. The copied MLM transform is that of the authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from ds_distill.models.copying import (
    check_tied,
    copy_from_teacher,
    sample_batches,
    tell_of_another_class,
    warn_of_eps,
    warn_of_first_layer,
)
from ds_distill.models.families import get_family, get_family_by_type
from ds_distill.models.folder import ModelFolder
from ds_distill.models.intermediates import run_encoder
from ds_distill.models.loading import load_encoder, load_masked_lm, new_model
from ds_distill.models.low_rank import factor_linears, input_moments, restore_factors, set_rank
from ds_distill.models.student_plan import find_start, plan_student
from ds_distill.utils.console import log, spinner


def build_student(
    teacher_model: PreTrainedModel,
    *,
    init_layers: str | Sequence[int] = "every_other",
    num_layers: int | None = None,
    hidden_size: int | None = None,
    num_attention_heads: int | None = None,
    intermediate_size: int | None = None,
    embedding_size: int | None = None,
    num_hidden_groups: int | None = None,
    linear_rank: int | None = None,
    family: str | None = None,
    dropout: float = 0.1,
    seed: int = 0,
    freeze_positions: bool = False,
    from_: str | None = None,
    head: bool = True,
    token_counts: Tensor | None = None,
    sample: Tensor | Sequence[Tensor] | None = None,
) -> PreTrainedModel:
    """Build a student in fp32, on the CPU, in train mode: a masked-LM model, or a bare encoder.

    Args:
        teacher_model: A teacher of any float dtype, on any device. It is left untouched. Where it has no
            masked-LM head, the student's is a new one.
        init_layers: As `spec` in `resolve_layer_map`.
        num_layers: As `student_layers` in `resolve_layer_map`.
        hidden_size: The student's width, by default the teacher's. A smaller one keeps whole attention
            heads and starts from the first rows and columns of the teacher's weights; where one weight computes
            several quantities, from the first rows of each.
        num_attention_heads: The number of its attention heads, by default the teacher's, reduced as the width is. With
            more than these, it takes the first dimensions of each of the teacher's heads.
        intermediate_size: The width of its feed-forward layers, by default the teacher's, reduced as the width is. A
            smaller one starts from the first columns of the teacher's.
        embedding_size: The width of its embeddings, by default the teacher's, reduced as the width is. A smaller one
            starts from the largest principal components of the teacher's, see `models.factorized`.
        num_hidden_groups: The number of groups of consecutive layers that share their weights; by default each layer
            has its own, or as many groups as the teacher's have. A group starts from the mean of its layers.
        linear_rank: The rank of two factors in place of each linear layer that they make smaller, see
            `models.low_rank`; by default the layers are whole.
        family: The student's family, by default the usual one of the teacher's students, or the one that has such
            embeddings or shares layers. A student of another class than its teacher's starts from what both have; the
            rest of it is new.
        dropout: The hidden and the attention dropout.
        seed: The seed of a random start. The global generators are left alone.
        freeze_positions: Freeze the position embeddings. The authors' config asks for sinusoidal
            and therefore frozen positions, which BERT's then overwrite, so their positions were
            never trained. With a random start, frozen positions are sinusoidal; only DistilBERT has
            these. Rotary positions are no embeddings, so there is nothing to freeze.
        from_: The folder or name of a model that the student is to be a copy of. init_layers, num_layers, hidden_size,
            intermediate_size, embedding_size, num_hidden_groups, linear_rank and family are then without meaning.
        head: Whether it has a masked-LM head.
        token_counts: How often text has each token, [V] or shorter, for `embedding_size`; None for equally often.
        sample: Ids of masked text, int64 [B, L], or several of these with lengths of their own, to fit the head of an
            `embedding_size` to what the teacher's makes of it, and the factors of a `linear_rank` to their layers'
            inputs; None for no fit.

    Raises:
        UserError: The layer map, a width, the family or the dropout is unfit, the teacher's decoder is not tied, the
            model `from_` is not complete or has another vocabulary, or there are no positions to freeze.

    A warning is logged where the teacher has a LayerNorm eps that DistilBERT cannot have. Another one is logged where a
    first layer, which lacks a norm in some families, is copied into another layer or starts from one.
    """
    sample = [sample] if isinstance(sample, Tensor) else sample
    layer_map, config = plan_student(
        teacher_model.config,
        init_layers=init_layers,
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        intermediate_size=intermediate_size,
        embedding_size=embedding_size,
        num_hidden_groups=num_hidden_groups,
        linear_rank=linear_rank,
        family=family,
        dropout=dropout,
        freeze_positions=freeze_positions,
        from_=from_,
    )
    if starts_from_teacher := from_ is None and init_layers != "random":
        if head:
            check_tied(teacher_model)
    if layer_map is not None:
        warn_of_eps(teacher_model, get_family_by_type(config.model_type))
        warn_of_first_layer(get_family_by_type(config.model_type), layer_map)
    if from_ is not None:
        start = find_start(from_)
        student = restore_factors(load_start(start, dropout=dropout, head=head), start.linear_rank)
    else:
        set_rank(config, None)  # its layers are factored once they have their weights
        student = _new_model(config, seed, head)
    if starts_from_teacher:
        new = copy_from_teacher(teacher_model, student, layer_map, embedding_size, token_counts, sample)
        if get_family(teacher_model) is not get_family(student):
            tell_of_another_class(teacher_model, student, layer_map, new)
    if linear_rank is not None and from_ is None:
        _factor(student, linear_rank, sample)
    if freeze_positions:
        for name, parameter in student.named_parameters():
            if name.endswith("position_embeddings.weight"):
                parameter.requires_grad_(False)
    return student.train()


def load_start(
    start: ModelFolder, *, head: bool, dropout: float | None = None, hollow: bool = False
) -> PreTrainedModel:
    """Return the model that a student is to be a copy of, with its masked-LM head or without.

    Args:
        start: The model's folder.
        head: Whether the student has a masked-LM head.
        dropout: As in `load_masked_lm`.
        hollow: As in `load_masked_lm`.

    Raises:
        UserError: The model is not complete, or lacks the head.
    """
    if head:
        return load_masked_lm(start, dropout=dropout, hollow=hollow)
    return load_encoder(start, dropout=dropout, hollow=hollow, bare=True)


def _factor(student: PreTrainedModel, rank: int, sample: Sequence[Tensor] | None) -> None:
    """Factor a student's linear layers, in place, by what their inputs are on the sample."""

    def run() -> None:
        for ids in sample_batches(sample or ()):
            run_encoder(student, ids, None)

    student.eval()
    with spinner("factoring the student's linear layers"):
        errors = factor_linears(student, rank, input_moments(student, run) if sample else None).values()
    error = sum(errors) / len(errors)
    inputs = "" if sample else ", for isotropic inputs, since there is no text to take real ones from"
    log(f"student: factors of rank {rank} change the outputs of its linear layers by {error:.1%} (mean square){inputs}")


def _new_model(config: PretrainedConfig, seed: int, head: bool) -> PreTrainedModel:
    """Return a model with random weights in fp32, on the CPU."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # torch.manual_seed would seed the accelerators too, which fork_rng(devices=[]) does not
        # restore
        torch.random.default_generator.manual_seed(seed)
        return new_model(config, head=head).float()


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters.

    Tied parameters count once, frozen ones count too, and where ZeRO-3 holds a part the whole
    parameter counts.
    """
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
