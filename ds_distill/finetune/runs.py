"""Fine-tuning of one model on one task: runs over seeds and settings, each resumable."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from ds_distill.compression.fake_quantize import check_quantizable
from ds_distill.finetune.augmented import add_augmented, read_augmented
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import Data, digest, encode_sets, load_data
from ds_distill.finetune.features import Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.inner_terms import InnerTerms
from ds_distill.finetune.notices import log_not_read, log_scale_mismatch, not_read
from ds_distill.finetune.one_run import memory_remedy, resolve_precision, run_once, write_settings
from ds_distill.finetune.plan import Plan, sets_key
from ds_distill.finetune.results import finished_before, make_summary, run_folder
from ds_distill.finetune.teachers import TaskTeachers
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.low_rank import count_with_factors
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.models.tokenizer_fit import check_vocabulary
from ds_distill.reporting import provenance
from ds_distill.reporting.provenance import Provenance
from ds_distill.reporting.run_text import describe_device, describe_model
from ds_distill.run_folder import RunFolder, locked_run_folder_alone
from ds_distill.run_record import write_record
from ds_distill.tasks.catalog import Task
from ds_distill.tasks.dev_outputs import FILE, DevOutputs
from ds_distill.training.device import default_device
from ds_distill.utils.articles import counted
from ds_distill.utils.console import log_header, progress, skip
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json
from ds_distill.utils.memory import retain_freed_memory
from ds_distill.utils.resources import explain_disk_full, explain_out_of_memory


def finetune(
    task: Task,
    model: str,
    output: Path,
    *,
    points: list[FinetuneConfig],
    seeds: list[int],
    teachers: Sequence[str] = (),
    data: str | None = None,
    augmented: str | None = None,
    report_to: Sequence[str] = ("tensorboard",),
) -> dict:
    """Run a plan: every point of the grid with every seed, each once and in a folder of its own.

    `augmented` is a folder that `augment` has written; its texts are trained on with the teacher's soft targets alone.

    Source of seeds and median: Sanh et al. 2019, section 3.

    Returns:
        The summary: `metric` (the task's first), its median over seeds at the best point, `metrics`
        (medians), `seeds` (those of each run), `constant` (those of the constant answer, see
        `tasks.dev_outputs`), and the folder of the representative model, the one at the median.
    """
    folder = find_model_folder(model, "--model")
    tokenizer = folder.tokenizer
    task_data = load_data(task, data)
    task = task_data.task
    rows = read_augmented(Path(augmented), task_data, points) if augmented else None
    task_teachers = TaskTeachers(teachers, task) if teachers else None
    torch.manual_seed(0)  # The new head's values are part of the run's identity.
    student = load_for_task(model, task, "model", tuned=False)
    check_vocabulary(tokenizer, student.config, f"--model {model}")
    parameters = count_with_factors(student, folder.linear_rank)
    positions = get_family(student).positions(student.config)
    if task_teachers:
        task_teachers.check_same_tokenizer(student, tokenizer)
        positions = min(positions, task_teachers.positions)
    layer_map = _find_layer_map(model)
    for point in points:
        if point.quantize:
            check_quantizable(folder.linear_rank, "finetune.quantize")
        if point.match and task_teachers is None:
            raise UserError("finetune.match: --teacher is missing; give a model that is fine-tuned on the task")
        if point.match and task_teachers:  # a mistake is told before anything is computed
            InnerTerms(point.match, student.config, task_teachers.first.config, layer_map, torch.device("cpu"))
    identity = {
        "task": task.name,
        "order": "by length",
        "model": weights_fingerprint(student)[:16],
        "data": task_data.fingerprint,
        "teacher": " + ".join(task_teachers.fingerprints) if task_teachers else None,
    } | ({"augmented": digest(iter(rows))} if rows is not None else {})
    with locked_run_folder_alone(output, identity, remedy="remove it, or choose another --output"):
        if finished := finished_before(output, points, seeds):
            return finished
        origin = provenance.from_model(
            folder.path,
            datasets=[] if data or task.own else [task.hub[0]],
            hardware=provenance.describe_hardware(),
            versions=provenance.describe_versions(),
        )
        plan = _make_plan(
            task_data, model, output, points, tokenizer, positions, task_teachers, rows, layer_map, origin, report_to
        )
        if teachers and task.regression:
            log_scale_mismatch(f"--teacher {' '.join(teachers)}", next(iter(plan.sets.values())).train)
        described = describe_model(student.config, parameters)
        results = _run_all(plan, points, seeds, described)
    summary, best = make_summary(task, results, output, model, teachers)
    sets = plan.encode_sets(best)
    num_train = min(task_data.counts["train"], best.max_train_samples or task_data.counts["train"])
    augmented_texts = {} if sets.train.labeled is None else {"augmented": sets.train.num_augmented}
    kept = Path(summary["export"]).parent / FILE  # not there for a run of an earlier version
    return (
        summary
        | ({"constant": DevOutputs.load(kept).score_constant()} if kept.is_file() else {})
        | {"examples": task_data.counts | {"train": num_train} | augmented_texts}
        | not_read(task_data, sets, tokenizer)
        | {"parameters": parameters}
    )


def _find_layer_map(model: str) -> list[int] | None:
    """Return the teacher layer that each layer of a distilled student started from; None where its run is not there."""
    folder = find_model_folder(model, "--model").path
    return provenance.read(RunFolder(folder.parent).provenance).layers


def _make_plan(
    data: Data,
    model: str,
    output: Path,
    points: list[FinetuneConfig],
    tokenizer,
    positions: int,
    teachers: TaskTeachers | None,
    augmented: list[dict] | None,
    layer_map: list[int] | None,
    origin: Provenance,
    report_to: Sequence[str],
) -> Plan:
    device, collator = default_device(), Collator(tokenizer)
    if device.type == "cpu":
        retain_freed_memory()
    if teachers is not None:
        teachers.to(device)
    sets = {}
    for point in points:
        key = sets_key(point)
        if key not in sets:
            sets[key] = encode_sets(data, tokenizer, point, positions)
            log_not_read(data, sets[key], point, positions, tokenizer)
            if augmented is not None:
                sets[key].train = add_augmented(sets[key].train, augmented, data, tokenizer, point, sets[key].length)
            if teachers is not None:
                with explain_disk_full(output), explain_out_of_memory(memory_remedy(point)):
                    sets[key].train.teacher = teachers.make_soft_targets(
                        sets[key].train, collator, point, output / "teacher"
                    )
    return Plan(data, model, output, sets, collator, teachers, layer_map, device, origin, report_to)


def _run_all(plan: Plan, points: list[FinetuneConfig], seeds: list[int], described: str) -> list[dict]:
    steps = [
        math.ceil(math.ceil(len(plan.encode_sets(point).train) / point.batch_size) * point.epochs) for point in points
    ]
    log_header(_header(plan, points, seeds, described, sum(steps) * len(seeds)))
    results = []
    with progress(sum(steps) * len(seeds), plan.task.name, "step", mixed=True) as bar:
        for point, length in zip(points, steps, strict=True):
            for seed in seeds:
                folder = run_folder(plan.output, point, points, seed)
                result = folder / "result.json"
                write_settings(folder, point, plan.device)
                if result.is_file():
                    skip(bar, length)
                else:
                    with explain_disk_full(folder), explain_out_of_memory(memory_remedy(point)):
                        write_json(result, run_once(plan, folder, point, seed, bar))
                    write_record(plan.output)
                # Half a checkpoint could not be resumed, so they go when the result is there.
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                # The folder is not kept in the result, because the output may be moved.
                results.append(
                    json.loads(result.read_text(encoding="utf-8"))
                    | {"folder": str(folder / "model"), "length": plan.encode_sets(point).length}
                )
    return results


def _header(plan: Plan, points: list[FinetuneConfig], seeds: list[int], described: str, steps: int) -> dict[str, str]:
    """Return the lines of the header of a plan, whose model is `described`."""
    counts = plan.data.counts
    most = max(point.max_train_samples or counts["train"] for point in points)
    added = max(plan.encode_sets(point).train.num_augmented for point in points)
    texts = f" and {added:,} augmented texts" if added else ""
    taken = f"{most:,} of {counts['train']:,}" if most < counts["train"] else f"{counts['train']:,}"
    precision = " and ".join(dict.fromkeys(resolve_precision(point, plan.device) for point in points))
    runs = f"{len(points)} settings × " if len(points) > 1 else ""
    return {
        plan.task.name: described + _describe_teachers(plan.teachers),
        "device": f"{describe_device(plan.device, 1)}, {precision}",
        "data": f"{taken} training examples{texts}, {counts['dev']:,} to score",
        "steps": f"{steps:,} in all: {runs}{counted(len(seeds), 'seed')}",
        "output": str(plan.output),
    }


def _describe_teachers(teachers: TaskTeachers | None) -> str:
    if teachers is None:
        return ""
    count = len(teachers.models)
    return ", with a teacher's outputs on the task" if count == 1 else f", with {count} teachers' outputs on the task"
