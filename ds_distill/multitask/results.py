"""The results of a run on several tasks: the models of the tasks with their scores, the teacher, and its drift."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.finetune.data import dev_sets
from ds_distill.finetune.dev_outputs import collect_outputs
from ds_distill.finetune.features import Collator
from ds_distill.finetune.heads import load_for_task
from ds_distill.finetune.notices import format_not_read, not_read
from ds_distill.finetune.trainer import answer_sets, score_answers
from ds_distill.jobs.evaluate import evaluate_folders
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.loader_text import loader_code
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.low_rank import restore_factors
from ds_distill.models.saving import save_model_folder
from ds_distill.models.tokenizer_fit import fit_tokenizer
from ds_distill.multitask.card import multitask_card
from ds_distill.multitask.model import MultitaskModel
from ds_distill.multitask.order import Steps
from ds_distill.multitask.run import Run
from ds_distill.reporting.card_sections import factors_remarks
from ds_distill.reporting.model_card import task_card
from ds_distill.run_folder import RunFolder, read_finished
from ds_distill.tasks.catalog import LENGTH_KEY
from ds_distill.tasks.metrics import Measured
from ds_distill.utils.console import log_event
from ds_distill.utils.files import StoredSummary, remove


def save_task(run: Run, model: MultitaskModel, name: str) -> None:
    """Write a task's model as one of its stock class, with a tokenizer that reads examples as the run did."""
    tuned, tokenizer, length = model.tasks[name], load_tokenizer(run.teacher.path), run.sets[name].length
    setattr(tuned.config, LENGTH_KEY, length)
    fit_tokenizer(tokenizer, tuned, length=length)
    save_model_folder(tuned, tokenizer, run.task_folder(name))


class TaskScores(NamedTuple):
    """The scores on a task's dev sets, as shares: of its model, and of the constant answer."""

    model: Measured
    constant: dict[str, float]


def score_task(run: Run, name: str) -> TaskScores:
    """Return the scores of a task's folder, loaded by its name alone, and write its model card."""
    folder, data, sets = run.task_folder(name), run.data[name], run.sets[name]
    tuned = load_for_task(str(folder), data.task, "model", tuned=True)
    reader = load_tokenizer(folder)
    dev = dev_sets(data, reader, reader.model_max_length)
    answers = answer_sets(
        data.task,
        tuned.to(run.device),  # type: ignore[arg-type]  # wrong in transformers
        dev,
        Collator(reader),
        2 * run.settings.batch_size,
        name,
    )
    metrics = score_answers(data.task, dev, answers)
    constant = collect_outputs(data, run.settings.max_train_samples, dev, answers).score_constant()
    log_event(f"{name}: " + ", ".join(f"{key} {'–' if x is None else f'{x:.3f}'}" for key, x in metrics.items()))
    card = task_card(
        data.task.head,
        data.task,
        metrics,
        run.trained() | {"length": sets.length},
        format_not_read(not_read(data, sets, reader)),
        run.origin,
        constant,
        loader_code(tuned),
        trained=[
            f"Its encoder was tuned on several tasks at once: {', '.join(run.data)}.",
            *factors_remarks(find_model_folder(str(folder), "--model").linear_rank),
        ],
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return TaskScores(metrics, constant)


def export_teacher(run: Run, model: MultitaskModel) -> None:
    """Write the masked-LM model as it came, with the tuned encoder in it."""
    tuned = restore_factors(load_masked_lm(run.teacher), run.teacher.linear_rank)
    get_family(tuned).get_encoder(tuned).load_state_dict(model.encoder.state_dict())
    export = RunFolder(run.output).export
    partial = export.with_suffix(".partial")
    remove(partial)
    save_model_folder(tuned, load_tokenizer(run.teacher.path), partial)
    remove(export)
    partial.rename(export)


def summarize(run: Run, steps: Steps, scores: dict[str, TaskScores], parameters: int, model: str) -> dict:
    """Measure masked LM before and after, write the card of the export, and return the summary."""
    export = RunFolder(run.output).export
    folders = [run.teacher, find_model_folder(str(export), "--model")]
    # This starts a process group, for which Trainer would wrap the model, and so comes after the training.
    rows = {row["model"]: row for row in evaluate_folders(folders, run.tokens, run.recipe, untrained=False)}
    before, after = (
        {key: value for key, value in rows[folder.name].items() if key.startswith("heldout_")} for folder in folders
    )
    tokenizer = run.teacher.tokenizer
    tasks = {
        name: {
            "metric": data.task.metrics[0],
            **scores[name].model,
            "constant": scores[name].constant,
            "steps": steps.of_each[name],
            "examples": data.counts | {"train": len(run.sets[name].train)},
            "length": run.sets[name].length,
            **not_read(data, run.sets[name], tokenizer),
            "model": str(run.task_folder(name)),
        }
        for name, data in run.data.items()
    }
    figures = after | {f"teacher_{key}": value for key, value in before.items()}
    card = multitask_card(
        {name: scores[name] for name in run.data},
        figures,
        run.trained(),
        run.origin,
        loader_code(load_masked_lm(folders[1], hollow=True)),
        folders[1].linear_rank,
    )
    (export / "README.md").write_text(card, encoding="utf-8")
    return {
        "tasks": tasks,
        "steps": len(steps),
        **figures,
        "settings": run.trained(),
        "parameters": parameters,
        "model": model,
        "export": str(export),
        "output": str(run.output),
    }


def finished_before(output: Path) -> StoredSummary | None:
    """Return the summary of a run that is finished, and say so; else None. The folder may have been moved since."""
    export = RunFolder(output).export
    summary = read_finished(output, export / "config.json", export=export)
    if summary is None:
        return None
    tasks = {name: task | {"model": str(output / "tasks" / name)} for name, task in summary["tasks"].items()}
    return StoredSummary(summary | {"tasks": tasks})
