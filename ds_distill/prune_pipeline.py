"""The work of `prune`, from texts to a summary: one cut, or several with a distillation after each."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ds_distill.compression.latency_table import FLOPS
from ds_distill.config.pruning import Pruning, check_cuts
from ds_distill.data.run_data import open_heldout, prepare_run_tokens, with_prepared_settings
from ds_distill.distributed.launch_environment import world_size
from ds_distill.distributed.process_group import broadcast_object, run_on_rank0
from ds_distill.exporters.huggingface import copy_export
from ds_distill.jobs.prune import check_cut, prune
from ds_distill.models.families import get_family
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.loading import load_encoder
from ds_distill.pipeline import prepare_and_distill
from ds_distill.preflight import checks as preflight
from ds_distill.preflight.models import check_reads_tokens
from ds_distill.recipe import Recipe
from ds_distill.run_folder import RunFolder, longer_by, run_in
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_summary
from ds_distill.utils.machine import cores

LATENCY_TABLE = "latency.json"  # in the output folder


def prepare_and_prune(
    recipe: Recipe,
    model: str,
    output: Path,
    prunings: list[Pruning],
    *,
    corpus: list[str],
    tokens: str | None,
    latency_table: str | None = None,
    compare: bool = False,
    distilled: bool = False,
    choose: bool = False,
) -> dict:
    """Collective: prune a model, and where asked distill it from the whole one after each cut.

    Each cut and each distillation is a run of its own, so a job that was interrupted resumes in the one that it was in,
    and the engine sees no shape change.

    Args:
        recipe: The recipe.
        model: The folder or name of the model, which is then the teacher too.
        output: The folder of all runs. Where the model is distilled, cut N is in its cut-N/pruned, and the student
            made of it in cut-N/distilled; the last student is in its export.
        prunings: How to prune, one cut after the other.
        corpus: The texts.
        tokens: The folder that `prepare` has made of texts, or None.
        latency_table: As in `prune`; by default LATENCY_TABLE in the output folder.
        compare: As in `prune`, of a model with a masked-LM head.
        distilled: Whether to distill after each cut.
        choose: As in `prepare_and_distill`.
    """
    check_cuts(prunings, distilled=distilled, compare=compare)
    # what has no speed to reach is not timed
    prunings = [replace(pruning, runtime=FLOPS) if pruning.width_alone else pruning for pruning in prunings]
    recipe = with_prepared_settings(recipe, Path(tokens)) if tokens else recipe
    preflight.check_texts([] if tokens else corpus, [], recipe)
    preflight.fetch_model(model, "--model")
    teacher = find_model_folder(model, "--model")
    for pruning in prunings:
        check_cut(teacher.config, pruning)
    check_reads_tokens(teacher, recipe, Path(tokens) if tokens else None, teacher.path)
    if compare and not _has_head(teacher):
        raise UserError(
            f"--compare: {teacher.name} has no masked-LM head, whose loss is compared; leave it out, or give a model "
            "with one"
        )
    if distilled:
        preflight.check_machine(recipe)
        # what is cut of the model has its depth, its width and its family
        whole = replace(recipe, student=replace(recipe.student, from_=model))
        preflight.check_teachers([teacher], whole, Path(tokens) if tokens else None)
    if distilled:
        run_on_rank0(partial(_check_length, output, recipe, len(prunings)))
    data = Path(tokens or RunFolder(output).tokens)
    if not tokens:
        prepare_run_tokens(corpus, str(teacher.path), recipe, data, bound=output)
        recipe = with_prepared_settings(recipe, data)
    if distilled:
        open_heldout(data)  # of a bare encoder a cut measures nothing, but a distillation does
    start, cuts = model, list[dict]()
    for number, pruning in enumerate(prunings, 1):
        place = output / f"cut-{number}" / "pruned" if distilled else output
        table = Path(latency_table or output / LATENCY_TABLE)
        cut: list[dict] = []
        options: dict[str, Any] = {"tokens": data, "recipe": recipe, "latency_table": table, "compare": compare}
        run_on_rank0(partial(_prune, cut, start, place, pruning, **options))
        cuts.append(broadcast_object(cut[0] if cut else None))
        if distilled:
            student = replace(recipe.student, from_=cuts[-1]["export"])
            summary = prepare_and_distill(
                replace(recipe, student=student),
                [model],
                place.with_name("distilled"),
                corpus=[],
                tokens=str(data),
                heldout=[],
                choose=choose,
            )
            start = summary["export"]
            # with which the same command finds this run done
            run_on_rank0(partial(write_summary, summary, place.with_name("distilled")))
    if not distilled:
        return cuts[0]
    run_on_rank0(lambda: copy_export(Path(summary["export"]), RunFolder(output).export))
    return summary | {"export": str(RunFolder(output).export), "output": str(output), "cuts": cuts}


def _has_head(folder: ModelFolder) -> bool:
    model = load_encoder(folder, hollow=True)
    return get_family(model).has_head(model)


def _prune(into: list[dict], *args: Any, **options: Any) -> None:
    threads = torch.get_num_threads()
    if world_size() > 1:  # the launcher has shared the cores among ranks of which all but this one wait now
        torch.set_num_threads(cores())
    try:
        into.append(prune(*args, **options))
    finally:
        torch.set_num_threads(threads)


def _check_length(output: Path, recipe: Recipe, cuts: int) -> None:
    """Raise UserError where a cut was made of the model of a shorter run than the one before it would be now."""
    for number in range(1, cuts):
        before = run_in(output / f"cut-{number}" / "distilled", "choose another --output") or {}
        for key, value in longer_by(before, recipe.identity()).items():
            if RunFolder(output / f"cut-{number + 1}" / "pruned").identity.is_file():
                raise UserError(
                    f"{output}: {key} was {before[key]}, is {value}: cut {number + 1} was made from the student that "
                    "the shorter run produced; choose another --output"
                )
