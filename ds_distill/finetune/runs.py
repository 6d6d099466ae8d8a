"""Fine-tuning of one model on one task: runs over seeds and settings, each resumable."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PrinterCallback

from ds_distill.compression.fake_quantize import unquantize
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune.augmented import add_augmented, read_augmented
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import Data, EncodedTask, dev_sets, digest, encode_sets, load_data
from ds_distill.finetune.dev_outputs import collect_outputs
from ds_distill.finetune.features import Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.inner_terms import InnerTerms
from ds_distill.finetune.notices import format_not_read, log_not_read, log_scale_mismatch, not_read
from ds_distill.finetune.quantize_last import QuantizeLast
from ds_distill.finetune.teachers import TaskTeachers
from ds_distill.finetune.trainer import (
    SAVE_EVERY,
    FinetuneTrainer,
    ReportCallback,
    _Bar,
    answer_sets,
    find_checkpoint,
    make_arguments,
    score_answers,
)
from ds_distill.finetune.weight_average import WeightAverage
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loader_text import loader_code
from ds_distill.models.precision import choose_cpu_dtype
from ds_distill.models.saving import save_model_folder
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.models.tokenizer_fit import check_vocabulary, fit_tokenizer
from ds_distill.reporting import provenance
from ds_distill.reporting.model_card import task_card
from ds_distill.reporting.provenance import Provenance
from ds_distill.reporting.run_text import describe_device, describe_model
from ds_distill.run_folder import RunFolder, locked_run_folder_alone
from ds_distill.run_record import write_record
from ds_distill.tasks.catalog import LENGTH_KEY, Task
from ds_distill.tasks.dev_outputs import FILE, DevOutputs
from ds_distill.tasks.metrics import median, rank
from ds_distill.tracking.trackers import Trackers
from ds_distill.utils.console import log, log_event, log_header, progress, skip
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import StoredSummary, read_summary, write_json
from ds_distill.utils.memory import retain_freed_memory
from ds_distill.utils.resources import explain_disk_full, explain_out_of_memory


@dataclass
class Plan:
    """The state that all runs of a plan share.

    Args:
        sets: The encoded sets by the settings that decide them, with the teachers' soft targets where there are
            teachers.
        origin: What the model cards tell of the model and the training.
    """

    data: Data
    model: str
    output: Path
    sets: dict[tuple, EncodedTask]
    collator: Collator
    teachers: TaskTeachers | None
    device: torch.device
    origin: Provenance
    report_to: Sequence[str]

    @property
    def task(self) -> Task:
        """The task."""
        return self.data.task

    def encode_sets(self, point: FinetuneConfig) -> EncodedTask:
        """Return the encoded sets of a point of the grid."""
        return self.sets[_sets_key(point)]


def _sets_key(point: FinetuneConfig) -> tuple:
    # The mean of several teachers' soft targets depends on the temperature.
    return point.max_length, point.max_train_samples, point.augmented_copies, point.temperature


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
    tokenizer = find_model_folder(model, "--model").tokenizer
    task_data = load_data(task, data)
    task = task_data.task
    task_teachers = TaskTeachers(teachers, task) if teachers else None
    torch.manual_seed(0)  # The new head's values are part of the run's identity.
    student = load_for_task(model, task, "model", tuned=False)
    check_vocabulary(tokenizer, student.config, f"--model {model}")
    positions = get_family(student).positions(student.config)
    if task_teachers:
        task_teachers.check_same_tokenizer(student, tokenizer)
        positions = min(positions, task_teachers.positions)
    layer_map = _find_layer_map(model)
    for point in points:
        if point.match and task_teachers is None:
            raise UserError("finetune.match: --teacher is missing; give a model that is fine-tuned on the task")
        if point.match and task_teachers:  # a mistake is told before anything is computed
            InnerTerms(point.match, student.config, task_teachers.first.config, layer_map, torch.device("cpu"))
    rows = read_augmented(Path(augmented), task_data) if augmented else None
    identity = {
        "task": task.name,
        "order": "by length",
        "model": weights_fingerprint(student)[:16],
        "data": task_data.fingerprint,
        "teacher": " + ".join(task_teachers.fingerprints) if task_teachers else None,
    } | ({"augmented": digest(iter(rows))} if rows is not None else {})
    with locked_run_folder_alone(output, identity, remedy="remove it, or choose another --output"):
        if finished := _finished_before(output, points, seeds):
            return finished
        origin = provenance.from_model(
            find_model_folder(model, "--model").path,
            datasets=[] if data or task.own else [task.hub[0]],
            hardware=provenance.describe_hardware(),
            versions=provenance.describe_versions(),
        )
        plan = _make_plan(
            task_data, model, output, points, tokenizer, positions, task_teachers, rows, origin, report_to
        )
        if teachers and task.regression:
            log_scale_mismatch(f"--teacher {' '.join(teachers)}", next(iter(plan.sets.values())).train)
        described = describe_model(student.config, student.num_parameters())
        results = _run_all(plan, points, seeds, described)
    summary, best = make_summary(task, results, output, model, teachers)
    sets = plan.encode_sets(best)
    num_train = min(task_data.counts["train"], best.max_train_samples or task_data.counts["train"])
    kept = Path(summary["export"]).parent / FILE  # not there for a run of an earlier version
    return (
        summary
        | ({"constant": DevOutputs.load(kept).score_constant()} if kept.is_file() else {})
        | {"examples": task_data.counts | {"train": num_train} | _count_augmented(sets)}
        | not_read(task_data, sets, tokenizer)
        | {"parameters": student.num_parameters()}
    )


def _find_layer_map(model: str) -> list[int] | None:
    """Return the teacher layer that each layer of a distilled student started from; None where its run is not there."""
    folder = find_model_folder(model, "--model").path
    return provenance.read(RunFolder(folder.parent).provenance).layers


def _count_augmented(sets: EncodedTask) -> dict[str, int]:
    labeled = sets.train.labeled
    return {} if labeled is None else {"augmented": len(labeled) - sum(labeled)}


def _make_plan(
    data: Data,
    model: str,
    output: Path,
    points: list[FinetuneConfig],
    tokenizer,
    positions: int,
    teachers: TaskTeachers | None,
    augmented: list[dict] | None,
    origin: Provenance,
    report_to: Sequence[str],
) -> Plan:
    device, collator = (
        torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"),
        Collator(tokenizer),
    )
    if device.type == "cpu":
        retain_freed_memory()
    if teachers is not None:
        teachers.to(device)
    sets = {}
    for point in points:
        key = _sets_key(point)
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
    return Plan(data, model, output, sets, collator, teachers, device, origin, report_to)


def _run_all(plan: Plan, points: list[FinetuneConfig], seeds: list[int], described: str) -> list[dict]:
    steps = [
        math.ceil(math.ceil(len(plan.encode_sets(point).train) / point.batch_size) * point.epochs) for point in points
    ]
    log_header(_header(plan, points, seeds, described, sum(steps) * len(seeds)))
    results = []
    with progress(sum(steps) * len(seeds), plan.task.name, "step") as bar:
        for point, length in zip(points, steps, strict=True):
            for seed in seeds:
                folder = _run_folder(plan.output, point, points, seed)
                result = folder / "result.json"
                _write_settings(folder, point, plan.device)
                if result.is_file():
                    skip(bar, length)
                else:
                    with explain_disk_full(folder), explain_out_of_memory(memory_remedy(point)):
                        write_json(result, _run_once(plan, folder, point, seed, bar))
                    write_record(plan.output)
                # The folder is not kept in the result, because the output may be moved.
                results.append(
                    json.loads(result.read_text(encoding="utf-8"))
                    | {"folder": str(folder / "model"), "length": plan.encode_sets(point).length}
                )
    return results


def _run_folder(output: Path, point: FinetuneConfig, points: list[FinetuneConfig], seed: int) -> Path:
    """Return the folder of a run, whose name has the seed and the settings that differ among the points."""
    differing = [f"{name}={value}" for name, value in _differing_settings(point, points).items()]
    return output / ",".join([*differing, f"seed={seed}"])


def _finished_before(output: Path, points: list[FinetuneConfig], seeds: list[int]) -> StoredSummary | None:
    """Return the summary of a plan of which every run is finished, and say so; else None."""
    summary = read_summary(output)
    if summary is None:
        return None
    try:
        # A summary has the length that was used; what was asked for is beside each run.
        if len({point.max_length for point in points}) > 1 or [row["seed"] for row in summary["seeds"]] != seeds:
            return None
        stored = [entry["settings"] | {"max_length": points[0].max_length} for entry in summary["grid"] or [summary]]
        if stored != [point.as_dict() for point in points]:
            return None
        for point in points:
            for seed in seeds:
                folder = _run_folder(output, point, points, seed)
                asked = json.loads((folder / "settings.json").read_text(encoding="utf-8"))["asked"]
                if asked != point.as_dict() or not (folder / "result.json").is_file():
                    return None
        export = output / os.path.relpath(summary["export"], summary["output"])  # the folder may have been moved since
    except (OSError, ValueError, KeyError, TypeError):
        return None
    count = len(points) * len(seeds)
    log(f"{output}: finished before ({count} of {count} runs), nothing to do")
    return StoredSummary(summary | {"export": str(export), "output": str(output)})


def _header(plan: Plan, points: list[FinetuneConfig], seeds: list[int], described: str, steps: int) -> dict[str, str]:
    """Return the lines of the header of a plan, whose model is `described`."""
    counts = plan.data.counts
    most = max(point.max_train_samples or counts["train"] for point in points)
    added = max(_count_augmented(plan.encode_sets(point)).get("augmented", 0) for point in points)
    texts = f" and {added:,} augmented texts" if added else ""
    precision = " and ".join(dict.fromkeys(resolve_precision(point, plan.device) for point in points))
    runs = f"{len(points)} settings × " if len(points) > 1 else ""
    return {
        plan.task.name: described + _describe_teachers(plan.teachers),
        "device": f"{describe_device(plan.device, 1)}, {precision}",
        "data": f"{min(most, counts['train']):,} training examples{texts}, {counts['dev']:,} to score",
        "steps": f"{steps:,} in all: {runs}{len(seeds)} seed{'s' * (len(seeds) != 1)}",
        "output": str(plan.output),
    }


def _describe_teachers(teachers: TaskTeachers | None) -> str:
    if teachers is None:
        return ""
    count = len(teachers.models)
    return ", with a teacher's outputs on the task" if count == 1 else f", with {count} teachers' outputs on the task"


def memory_remedy(point: FinetuneConfig) -> str:
    """Return what may be done where a run needs more memory than there is."""
    return (
        f"finetune.batch_size = {point.batch_size}: try {max(1, point.batch_size // 2)}, or a smaller "
        "finetune.max_length"
    )


def _differing_settings(point: FinetuneConfig, points: list[FinetuneConfig]) -> dict:
    others = [other.as_dict() for other in points]
    return {name: value for name, value in point.as_dict().items() if any(other[name] != value for other in others)}


def _write_settings(folder: Path, point: FinetuneConfig, device: torch.device) -> None:
    """Write how the run is trained into folder/settings.json, with "auto" decided once and for all.

    A run that was begun with other settings is removed.

    Raises:
        UserError: If a run with other settings has ended; its model stays.
    """
    file = folder / "settings.json"
    if file.is_file():
        before = FinetuneConfig().as_dict() | json.loads(file.read_text(encoding="utf-8"))["asked"]
        changed = [
            f"finetune.{name} was {value}, is {now}"
            for name, now in point.as_dict().items()
            if (value := before[name]) != now
        ]
        if not changed:
            return
        if (folder / "result.json").is_file():
            raise UserError(f"{folder} holds another run ({'; '.join(changed)}): choose another --output, or remove it")
    elif (folder / "result.json").is_file():
        raise UserError(f"{folder} holds a run of an earlier version: choose another --output, or remove it")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(file, {"asked": point.as_dict(), "precision": resolve_precision(point, device)})


def resolve_precision(point: FinetuneConfig, device: torch.device) -> str:
    """Return the number format that a run trains in, "fp32" or "bf16"."""
    if point.precision != "auto":
        return point.precision
    return "bf16" if device.type == "cuda" or choose_cpu_dtype() == torch.bfloat16 else "fp32"


def _run_once(plan: Plan, folder: Path, point: FinetuneConfig, seed: int, bar) -> dict:
    torch.manual_seed(seed)
    model_to_train = load_for_task(plan.model, plan.task, "model", tuned=False, dropout=point.dropout)
    precision, cpu, sets = (
        json.loads((folder / "settings.json").read_text(encoding="utf-8"))["precision"],
        plan.device.type == "cpu",
        plan.encode_sets(point),
    )
    # In bf16 on a CPU, eager attention takes 5 to 24 % off a step (docs/dev/log.md, 2026-11-26). In
    # fp32 torch's own is no slower.
    if cpu and precision == "bf16":
        model_to_train.set_attn_implementation("eager")
    arguments = make_arguments(point, folder, seed, bf16=precision == "bf16", cpu=cpu, save_every=SAVE_EVERY)
    last, checkpoint = find_checkpoint(folder)
    average = WeightAverage(model_to_train, point.average_weights, checkpoint) if point.average_weights > 0 else None
    inner = None
    if point.match and plan.teachers is not None:
        layer_map = _find_layer_map(plan.model)
        inner = InnerTerms(point.match, model_to_train.config, plan.teachers.first.config, layer_map, plan.device)
    trainer = FinetuneTrainer(
        model=model_to_train,
        args=arguments,
        train_dataset=sets.train,
        data_collator=plan.collator,
        settings=point,
        task=plan.task,
        teacher=plan.teachers.first if plan.teachers else None,
        average=average,
        inner=inner,
        callbacks=[_Bar(bar)],
    )
    if point.quantize:
        trainer.add_callback(QuantizeLast(model_to_train, point.quantize, point.quantize_share))
    trainer.remove_callback(PrinterCallback)  # It prints to standard output, which belongs to results.
    config = {"task": plan.task.name, "model": plan.model, "seed": seed, "finetune": point.as_dict()}
    name = "/".join(folder.resolve().parts[-2:])  # that of --output, and that of this run in it
    with Trackers(plan.report_to, RunFolder(folder), last, config, name) as trackers:
        trainer.add_callback(ReportCallback(trackers))
        trainer.train(resume_from_checkpoint=checkpoint)
        unquantize(model_to_train)
        if average:
            average.apply()
        # A later scoring of the folder then reads examples as this run did.
        setattr(model_to_train.config, LENGTH_KEY, sets.length)
        fit_tokenizer(plan.collator.tokenizer, model_to_train, length=sets.length)
        save_model_folder(model_to_train, plan.collator.tokenizer, folder / "model")
        # The folder's content is scored: its tokenizer with its settings, and its weights in fp32.
        # Training's autocast stays with the network.
        final = load_for_task(str(folder / "model"), plan.task, "model", tuned=True).to(
            plan.device  # type: ignore[arg-type]  # wrong in transformers
        )
        reader = load_tokenizer(folder / "model")
        dev = dev_sets(plan.data, reader, reader.model_max_length)
        answers = answer_sets(plan.task, final, dev, Collator(reader), 2 * point.batch_size, f"seed {seed}")
        metrics = score_answers(plan.task, dev, answers)
        outputs = collect_outputs(plan.data, point.max_train_samples, dev, answers)
        outputs.save(folder / FILE)
        trackers.log({f"dev/{name}": value for name, value in metrics.items()}, trainer.state.global_step)
    figures = ", ".join(f"{name} {'–' if value is None else f'{value:.3f}'}" for name, value in metrics.items())
    log_event(f"{plan.task.name}, {folder.name}: {figures}")
    head = "question-answering" if plan.task.spans else "token-classification" if plan.task.tokens else "classification"
    trained = {"seed": seed, "precision": precision, **point.as_dict(), "length": sets.length}
    remark = format_not_read(not_read(plan.data, sets, reader))
    card = task_card(
        head, plan.task, metrics, trained, remark, plan.origin, outputs.score_constant(), loader_code(final)
    )
    (folder / "model" / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    return {"seed": seed, "settings": point.as_dict(), "precision": precision, "metrics": metrics, "losses": losses}


def make_summary(
    task: Task, results: list[dict], output: Path, model: str, teachers: Sequence[str]
) -> tuple[dict, FinetuneConfig]:
    """Return (summary, the best point of the grid) by the median of the task's first metric.

    In the summary, a setting's max_length is the one that was used.
    """
    metric = task.metrics[0]
    by_point: dict[str, list[dict]] = {}
    for result in results:
        by_point.setdefault(json.dumps(result["settings"], sort_keys=True), []).append(result)
    best = max(by_point.values(), key=lambda runs: rank(median(run["metrics"][metric] for run in runs)))
    dev = {name: median(run["metrics"][name] for run in best) for name in best[0]["metrics"]}
    measured = [run for run in best if run["metrics"][metric] is not None]
    middle = (
        best[0] if dev[metric] is None else min(measured, key=lambda run: abs(run["metrics"][metric] - dev[metric]))
    )
    points = [
        {
            "settings": runs[0]["settings"] | {"max_length": runs[0]["length"]},
            metric: median(run["metrics"][metric] for run in runs),
        }
        for runs in by_point.values()
    ]
    summary = {
        "task": task.name,
        "metric": metric,
        metric: dev[metric],
        "metrics": dev,
        # not `precision`, which is a metric of tags
        "seeds": [{"seed": run["seed"], **run["metrics"], "number_format": run["precision"]} for run in best],
        "settings": best[0]["settings"] | {"max_length": best[0]["length"]},
        "grid": points if len(points) > 1 else [],
        "model": model,
        "teacher": teachers[0] if len(teachers) == 1 else list(teachers) or None,
        "export": middle["folder"],
        "output": str(output),
    }
    return summary, FinetuneConfig(**best[0]["settings"])
