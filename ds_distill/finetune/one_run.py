"""One fine-tuning run: one model, one point of the grid, one seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import PrinterCallback

from ds_distill.compression.fake_quantize import unquantize
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.finetune.data import dev_sets
from ds_distill.finetune.dev_outputs import collect_outputs
from ds_distill.finetune.features import Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.inner_terms import InnerTerms, drop_projections, put_projections
from ds_distill.finetune.notices import format_not_read, not_read
from ds_distill.finetune.plan import Plan
from ds_distill.finetune.quantize_last import QuantizeLast
from ds_distill.finetune.trainer import (
    SAVE_EVERY,
    FinetuneTrainer,
    ProgressBar,
    ReportCallback,
    answer_sets,
    find_checkpoint,
    make_arguments,
    score_answers,
    train,
)
from ds_distill.finetune.weight_average import WeightAverage
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loader_text import loader_code
from ds_distill.models.low_rank import restore_factors
from ds_distill.models.precision import choose_cpu_dtype
from ds_distill.models.saving import save_model_folder
from ds_distill.models.tokenizer_fit import fit_tokenizer
from ds_distill.reporting import provenance
from ds_distill.reporting.card_sections import factors_remarks
from ds_distill.reporting.model_card import task_card
from ds_distill.run_folder import RunFolder
from ds_distill.tasks.catalog import LENGTH_KEY
from ds_distill.tasks.dev_outputs import FILE
from ds_distill.tracking.trackers import Trackers
from ds_distill.utils.console import log_event
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json


def _describe_augmented(added: int) -> list[str]:
    """Return what a card says of a number of texts that an augmentation has added; nothing for none."""
    if not added:
        return []
    return [f"Beside the labeled examples it learned the teacher's answers to {added:,} texts of an augmentation."]


def memory_remedy(point: FinetuneConfig) -> str:
    """Return what may be done where a run needs more memory than there is."""
    return (
        f"finetune.batch_size = {point.batch_size}: try {max(1, point.batch_size // 2)}, or a smaller "
        "finetune.max_length"
    )


def write_settings(folder: Path, point: FinetuneConfig, device: torch.device) -> None:
    """Write how the run is trained into folder/settings.json, with "auto" decided once and for all.

    A run that was begun with other settings is removed.

    Raises:
        UserError: If a run with other settings has ended; its model stays.
    """
    file = folder / "settings.json"
    if file.is_file():
        before = FinetuneConfig.complete(json.loads(file.read_text(encoding="utf-8"))["asked"])
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


def run_once(plan: Plan, folder: Path, point: FinetuneConfig, seed: int, bar) -> dict:
    """Train, save and score one run of the plan, from its checkpoint where there is one.

    Args:
        plan: The plan.
        folder: The run's folder, with the file of `write_settings`; its model is written to folder/model.
        point: The settings.
        seed: The seed of the new head's values, the order and dropout.
        bar: The plan's progress bar, which advances with each step.

    Returns:
        The seed, settings, precision, metrics and losses, for result.json.
    """
    torch.manual_seed(seed)
    rank = find_model_folder(plan.model, "--model").linear_rank
    model_to_train = restore_factors(
        load_for_task(plan.model, plan.task, "model", tuned=False, dropout=point.dropout), rank
    )
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
    inner = None
    if point.match and plan.teachers is not None:
        configs = model_to_train.config, plan.teachers.first.config
        inner = InnerTerms(point.match, *configs, plan.layer_map, plan.device)
        put_projections(model_to_train, inner)
    average = WeightAverage(model_to_train, point.average_weights, checkpoint) if point.average_weights > 0 else None
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
        callbacks=[ProgressBar(bar)],
    )
    if point.quantize:
        trainer.add_callback(QuantizeLast(model_to_train, point.quantize, point.quantize_share))
    trainer.remove_callback(PrinterCallback)  # It prints to standard output, which belongs to results.
    config = {"task": plan.task.name, "model": plan.model, "seed": seed, "finetune": point.as_dict()}
    name = "/".join(folder.resolve().parts[-2:])  # that of --output, and that of this run in it
    with Trackers(plan.report_to, RunFolder(folder), last, config, name) as trackers:
        trainer.add_callback(ReportCallback(trackers))
        train(trainer, checkpoint)
        unquantize(model_to_train)
        if average:
            average.apply()
        drop_projections(model_to_train)
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
    trained = {"seed": seed, "precision": precision, **point.as_dict(), "length": sets.length}
    remark = format_not_read(not_read(plan.data, sets, reader))
    paths = plan.teachers.paths if plan.teachers else []
    card = task_card(
        plan.task.head,
        plan.task,
        metrics,
        trained,
        remark,
        plan.origin,
        outputs.score_constant(),
        loader_code(final),
        [provenance.name_model(Path(path)) if Path(path).exists() else path for path in paths],
        [*_describe_augmented(sets.train.num_augmented), *factors_remarks(rank)],
    )
    (folder / "model" / "README.md").write_text(card, encoding="utf-8")
    losses = [[entry["step"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]
    return {"seed": seed, "settings": point.as_dict(), "precision": precision, "metrics": metrics, "losses": losses}
