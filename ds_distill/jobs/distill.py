"""The job of distilling a student on prepared tokens."""

from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedModel

from ds_distill.data.run_data import open_run_data
from ds_distill.distributed.process_group import start_distributed
from ds_distill.jobs.frozen_teacher import freeze_teacher
from ds_distill.jobs.micro_batch import with_resolved_micro_batch
from ds_distill.jobs.run_files import (
    describe_circumstances,
    export_and_summarize,
    finished_before,
    forward_mflops,
    keep_model,
)
from ds_distill.losses.objective import Objective
from ds_distill.models.families import get_family
from ds_distill.models.folder import ModelFolder
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.student import build_student, count_parameters, find_start, plan_student
from ds_distill.models.teacher import Teacher, weights_fingerprint
from ds_distill.preflight.models import check_fits_prepared_tokens
from ds_distill.recipe import Losses, Recipe
from ds_distill.reporting import provenance
from ds_distill.reporting.heldout import share_kept
from ds_distill.run_folder import RunFolder, locked_run_folder
from ds_distill.stages import spans_of
from ds_distill.training.device import local_device, resolve_dtype
from ds_distill.training.evaluation import evaluate
from ds_distill.training.stages import Stages
from ds_distill.training.trainer import Trainer, count_steps, explain_training_memory
from ds_distill.utils.console import log, progress


def distill(
    recipe: Recipe,
    teacher: ModelFolder,
    tokens: Path,
    output: Path,
    *,
    title: str = "distill",
    heldout: dict[str, Path] | None = None,
) -> dict:
    """Collective: distill a student of `teacher` on prepared tokens.

    With losses.kl and losses.cosine 0 the same student is trained without the teacher. With data.clean_fraction 1
    nothing is masked, and the vocabulary losses are left out.

    Args:
        recipe: The recipe.
        teacher: The teacher.
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
    recipe = with_resolved_micro_batch(recipe, teacher, world)
    store, loader, held = open_run_data(tokens, recipe, rank, world, heldout or {})
    check_fits_prepared_tokens(store, teacher)
    source = load_masked_lm(teacher)
    inputs = {"data": store.manifest["fingerprint"], "teacher": weights_fingerprint(source)[:16]}
    start = None if recipe.student.from_ is None else find_start(recipe.student.from_)
    if start:
        inputs["student.from"] = weights_fingerprint(load_masked_lm(start))[:16]
    with locked_run_folder(
        output,
        recipe.identity() | inputs,
        recipe.training.resume,
        "choose another --output" + ", and start from this student with student.from" * bool(recipe.stages),
        can_grow=not recipe.stages,  # whose ends are shares of a length
    ):
        if finished := finished_before(folder, recipe, loader, held):
            return finished
        t, objectives = recipe.training, [losses for _, losses in recipe.losses_by_share()]
        taught = any(losses.need_teacher for losses in objectives)
        if recipe.data.clean_fraction == 1:
            log("data.clean_fraction = 1: no sequence is masked, so losses.kl and losses.mlm are left out")
        student = build_student(source, **asdict(recipe.student), dropout=t.dropout, seed=t.seed)
        layer_map, _ = plan_student(source.config, **asdict(recipe.student), dropout=t.dropout)
        if start:
            log(f"student: a copy of {start.name}")
        origin = provenance.from_model(
            teacher.path,
            start=start and provenance.name_model(start.path),
            layers=layer_map,
            base_layers=get_family(source).dims(source.config).depth,
            distilled=taught,
            **describe_circumstances(store, world),
        )
        keep_model(student.config, tokens, folder, origin, teacher)
        teacher_config = source.config

        def make(model: PreTrainedModel, losses: Losses) -> Objective:
            return Objective(model, losses, world, teacher_config, layer_map)

        spans = spans_of(recipe, count_steps(recipe, loader))
        stages = Stages(spans, student, teacher_config, make) if spans else None
        objective = None if stages else make(student, objectives[0])
        frozen = None
        teacher_figures: dict[str, float | None] = {}
        if taught:
            teacher_figures["parameters"] = count_parameters(source)
            teacher_figures["forward_mflops_per_token"] = forward_mflops(source.config, store)
            frozen = freeze_teacher(
                source,
                teacher,
                t,
                loader.micro_batches(0)[0],
                device,
                dtype,
                head=any(losses.kl for losses in objectives),
            )
        del source
        del student
        with explain_training_memory(t):
            trainer = Trainer(objective, frozen, loader, held, recipe, folder, device, dtype, title, stages)
            summary = trainer.fit()
            heldout_of_teacher = {} if frozen is None else _evaluate_teacher(trainer, frozen, world)
        if any(losses.need_vocabulary for losses in objectives):
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
            teacher_folder=str(teacher.path),
        )


def _evaluate_teacher(trainer: Trainer, teacher: Teacher, world: int) -> dict[str, dict]:
    """Collective: return the teacher's figures on each held-out set, under the student's masks.

    The teacher is not of use for training afterwards.
    """
    objective = Objective(teacher.model, trainer.objective.losses.without_teacher(), world).eval()
    figures = {}
    with progress(None, "teacher's evaluation", "batch") as bar:
        for name, make_batches in trainer.heldout.items():
            batches = (batch for batch in make_batches() if bar.update() or True)
            figures[name] = evaluate(objective, batches, trainer.device)
    return figures
