"""The job of distilling a student on prepared tokens."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ds_distill.data.dataset import TokenDataset
from ds_distill.data.masking import REPLACED
from ds_distill.data.run_data import open_run_data
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.distributed.process_group import start_distributed
from ds_distill.jobs.frozen_teacher import freeze_teachers
from ds_distill.jobs.micro_batch import with_resolved_micro_batch
from ds_distill.jobs.run_files import (
    describe_circumstances,
    export_and_summarize,
    finished_before,
    forward_mflops,
    keep_model,
)
from ds_distill.jobs.teachers_evaluation import evaluate_teachers
from ds_distill.losses.objective import Objective, sites_of
from ds_distill.models.families import get_family
from ds_distill.models.families.students import copies_embeddings
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import load_teacher
from ds_distill.models.student import build_student, count_parameters, load_start
from ds_distill.models.student_plan import find_start, plan_student
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.preflight.models import check_fits_prepared_tokens, check_one_vocabulary
from ds_distill.recipe import Losses, Recipe
from ds_distill.reporting import provenance
from ds_distill.reporting.heldout import share_kept
from ds_distill.run_folder import RunFolder, locked_run_folder
from ds_distill.stages import spans_of
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.training.stages import Stages
from ds_distill.training.trainer import Trainer, count_steps, explain_training_memory
from ds_distill.utils.console import log

SAMPLE, LOOKED_AT = 8192, 1 << 16  # tokens, and the sequences among which they are looked for


def distill(
    recipe: Recipe,
    teachers: Sequence[ModelFolder],
    tokens: Path,
    output: Path,
    *,
    title: str = "distill",
    heldout: dict[str, Path] | None = None,
) -> dict:
    """Collective: distill a student of `teachers` on prepared tokens.

    It starts from the first one. With no term that compares it with them, the same student is trained without them.
    With data.clean_fraction 1 nothing is masked, and the vocabulary losses are left out.

    Args:
        recipe: The recipe.
        teachers: The teachers.
        tokens: The folder of prepared tokens.
        output: The run's folder.
        title: The title of plot and model card.
        heldout: Folders of further held-out texts, by name, from heldout_sets.
    """
    recipe.check()
    folder = RunFolder(output)
    rank, world = start_distributed()
    device = local_device(recipe.training.device)
    dtype = resolve_dtype(recipe.training, device)
    logits, head, first = recipe.compares_logits, recipe.need_vocabulary, teachers[0]
    recipe = with_resolved_micro_batch(recipe, teachers, world)
    store, loader, held = open_run_data(tokens, recipe, rank, world, heldout or {})
    check_one_vocabulary(teachers, logits)
    for teacher in teachers:
        check_fits_prepared_tokens(store, teacher)
    sources = [load_teacher(teacher, logits=logits) for teacher in teachers]
    source = sources[0]
    prints = " + ".join(weights_fingerprint(model)[:16] for model in sources)
    inputs = {"data": store.manifest["fingerprint"], "teacher": prints}
    start = None if recipe.student.from_ is None else find_start(recipe.student.from_)
    if start:
        inputs["student.from"] = weights_fingerprint(load_start(start, head=head))[:16]
    if not head:
        inputs["student.head"] = "none"  # earlier versions kept one that no term trained
    with locked_run_folder(
        output,
        recipe.identity() | inputs,
        recipe.training.resume,
        "choose another --output" + ", and start from this student with student.from" * bool(recipe.stages),
        can_grow=not recipe.stages,  # whose ends are shares of a length
    ):
        if finished := finished_before(folder, recipe, loader, held):
            return finished
        t = recipe.training
        if recipe.data.clean_fraction == 1 and any(losses.need_vocabulary for losses in recipe.given_losses().values()):
            log("data.clean_fraction = 1: no sequence is masked, so losses.kl and losses.mlm are left out")
        fitted = recipe.student.embedding_size or recipe.student.linear_rank
        counts, sample = _describe_text(store, tokens, recipe) if fitted else (None, None)
        student = build_student(
            source,
            **asdict(recipe.student),
            dropout=t.dropout,
            seed=t.seed,
            head=head,
            token_counts=counts,
            sample=sample,
        )
        layer_map, student_config = plan_student(source.config, **asdict(recipe.student), dropout=t.dropout)
        starts_from_words = layer_map is None and not start and recipe.student.init_layers != "random"
        starts_from_words &= copies_embeddings(get_family(source), source.config, get_family(student), student.config)
        if start:
            log(f"student: a copy of {start.name}")
        elif head and not get_family(source).has_head(source):
            log(f"student: {first.name} has no masked-LM head, so the student's is a new one")
        origin = provenance.from_models(
            [teacher.path for teacher in teachers],
            start=start and provenance.name_model(start.path),
            layers=layer_map,
            embeddings=starts_from_words,
            base_layers=get_family(source).dims(source.config).depth,
            distilled=recipe.need_teacher,
            **describe_circumstances(store, world),
        )
        keep_model(student, tokens, folder, origin, first)
        teacher_config, *further = (model.config for model in sources)

        def make(model: PreTrainedModel, losses: Losses) -> Objective:
            return Objective(model, losses, world, teacher_config, layer_map, further)

        spans = spans_of(recipe, count_steps(recipe, loader))
        stages = Stages(spans, student, teacher_config, make) if spans else None
        objective = None if stages else make(student, recipe.trained_losses())
        frozen = None
        teacher_figures: dict[str, float | None] = {}
        # a teacher without the head that the student has cannot be measured as the student is
        measured = recipe.need_teacher and head and all(get_family(x).has_head(x) for x in sources)
        if recipe.need_teacher:
            teacher_figures["parameters"] = sum(map(count_parameters, sources))
            teacher_figures["forward_mflops_per_token"] = sum(forward_mflops(model, store) for model in sources)
            del source
            sites, averaged = sites_of(stages.objectives() if stages else [cast(Objective, objective)])
            batch = loader.micro_batches(0)[0]
            frozen = freeze_teachers(sources, teachers, recipe, batch, device, dtype, sites, averaged)
        else:
            del source, sources
        del student
        with explain_training_memory(t, student_config):
            trainer = Trainer(objective, frozen, loader, held, recipe, folder, device, dtype, title, stages)
            summary = trainer.fit()
            heldout_of_teacher = evaluate_teachers(trainer, teachers) if measured else {}
        if head:
            summary["kl_tokens"] = recipe.losses.kl_tokens
        teacher_figures |= {f"heldout_{key}": value for key, value in heldout_of_teacher.get("", {}).items()}
        summary |= {f"teacher_{key}": value for key, value in teacher_figures.items()}
        summary["kept"] = share_kept(summary.get("heldout_mask_accuracy"), summary.get("teacher_heldout_mask_accuracy"))
        return export_and_summarize(
            trainer,
            summary,
            recipe,
            tokens,
            origin,
            teacher=heldout_of_teacher,
            layer_map=layer_map,
            # a report finds the run of the teacher, where it is one, by this
            **({"teacher_folder": str(first.path)} if len(teachers) == 1 else {}),
        )


def _describe_text(store: TokenDataset, tokens: Path, recipe: Recipe) -> tuple[Tensor, list[Tensor]]:
    """Return (token_counts, sample) for a start with factors, see `build_student`; alike on every rank.

    The counts, float64 [V], are of what the student reads, tokens as in the text and [MASK] as masks put it there, and
    of what it is asked for, which is drawn with p ∝ count · count^-smoothing; both count as much. The sample is of
    sequences of full length where there are any, since others are the rests of packed text; lines are taken as they
    come.
    """
    counts, tokenizer = torch.from_numpy(store.token_counts).double(), load_tokenizer(tokens / "tokenizer")
    mask = cast(int, tokenizer.mask_token_id)
    asked = torch.where(counts > 0, counts ** (1 - recipe.data.mlm_smoothing), 0.0)
    asked[tokenizer.all_special_ids] = 0.0
    total, share = counts.sum(), REPLACED * recipe.data.mlm_probability * (1 - recipe.data.clean_fraction)
    counts[mask] += share * total
    if recipe.need_vocabulary:
        counts += total * asked / asked.sum().clamp_min(1.0)
    length = recipe.data.sequence_length
    # drawn from all of the text, since its parts may be of different kinds
    drawn = np.random.default_rng(recipe.training.seed).choice(len(store), min(len(store), LOOKED_AT), replace=False)
    seen = store.lengths(drawn)
    full = np.flatnonzero(seen == length)
    taken = full if len(full) and store.manifest["mode"] != "lines" else np.arange(len(seen))
    taken = taken[: 1 + np.searchsorted(np.cumsum(seen[taken]), SAMPLE)]
    generator = torch.Generator().manual_seed(recipe.training.seed)
    sample = []
    for size in np.unique(seen[taken]):  # rows of one length need no padding
        rows = np.stack([store.sequence(index) for index in drawn[taken[seen[taken] == size]]])
        ids = torch.from_numpy(rows.astype("int64"))
        sample.append(torch.where(torch.rand(ids.shape, generator=generator) < share, mask, ids))
    return counts, sample
