"""Model cards: the README.md of the export of a run, and of a fine-tuned folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ds_distill.reporting.card_sections import (
    MADE_WITH,
    NO_HEAD,
    PIPELINES,
    card_tags,
    encoder_tags,
    factors_remarks,
    front_matter,
    heldout_results,
    is_measured,
    limitations_section,
    made_of,
    provenance_entries,
    training_section,
    usage_section,
)
from ds_distill.reporting.provenance import Provenance
from ds_distill.reporting.tables import table
from ds_distill.tasks.catalog import Task
from ds_distill.utils.files import json_text

HELDOUT_POSITIONS = (
    " Those called `mask` are measured at the positions that show [MASK]; those called `mlm` at all selected "
    "positions, of which 80 % show [MASK], 10 % a random token (`random`) and 10 % the token itself (`kept`), where "
    "the answer is visible. Losses are in nats per position, accuracies are shares, `count` is the number of "
    "positions and `se` a standard error over sequences."
)
MATCHED_TERMS = (
    " They are the means over real tokens of the terms of the loss, which compare the encoder with its teacher, and of "
    "their weighted sum (`heldout_loss`); `count` is the number of tokens and `se` a standard error over sequences."
)
# name of a figure on the Hub, by the name that a task gives it
HUB_METRICS = {"matthews": "matthews_correlation", "pearson": "pearsonr", "spearman": "spearmanr"}


def model_card(
    title: str,
    summary: dict,
    recipe: dict,
    fingerprint: str,
    origin: Provenance | None = None,
    *,
    head: str = "masked-lm",
    pooler: bool = False,
    loader: str | None = None,
    rank: int | None = None,
) -> str:
    """Return the README.md of an export: measured figures, what it was made of, recipe and data fingerprint.

    Args:
        title: The title.
        summary: The run's figures.
        recipe: The run's settings, by section or by dotted key.
        fingerprint: That of the data.
        origin: What it was made of.
        head: "masked-lm", or "encoder" for a bare encoder.
        pooler: Whether transformers adds a pooler to such an encoder unless it is told not to.
        loader: The code of `models.loader_text` for a model that is of no stock class.
        rank: The rank of the factors that its linear layers were trained in; None for whole layers.
    """
    origin = origin or Provenance()
    figures: dict[str, Any] = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    figures = dict(sorted(figures.items(), key=lambda figure: not figure[0].startswith("heldout_mask_")))
    positions = HELDOUT_POSITIONS if "heldout_mask_loss" in figures else ""
    if head == "encoder":
        # terms of the loss may be small
        figures = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in figures.items()}
        kind, measured = "A bare encoder, without a masked-LM head,", "the figures above"
        positions = MATCHED_TERMS if "heldout_loss" in figures else ""
    else:
        kind, measured = "A masked language model", "the masked-LM figures above"
    return (
        front_matter(
            head,
            **provenance_entries(origin),
            tags=encoder_tags(origin, loader),
            model_name=title,
            eval_results=list(heldout_results(summary, origin.datasets)),
        )
        + f"# {title}\n\n{kind} {MADE_WITH}{made_of(origin)}.\n\n"
        + (NO_HEAD if head == "encoder" else "")
        + usage_section(head, pooler, loader)
        + "## Measured\n\n"
        + table(
            [{"figure": key, "value": value} for key, value in figures.items()], {"figure": "figure", "value": "value"}
        )
        + f"\n\nHeld-out figures refer to the held-out documents and masks of this run.{positions}\n\n"
        + training_section(origin, [*_objective(recipe), *factors_remarks(rank)])
        + f"## Data\n\nFingerprint: `{fingerprint}`\n\n"
        + limitations_section(origin, f"Nothing but {measured} was measured: no task, and no other text.")
        + "## Recipe\n\n```json\n"
        + json_text(_without_folders(recipe), indent=2)
        + "\n```\n"
    )


def task_card(
    head: str,
    task: Task,
    metrics: dict[str, float | None],
    settings: dict,
    remark: str = "",
    origin: Provenance | None = None,
    constant: dict[str, float] | None = None,
    loader: str | None = None,
    teachers: Sequence[str] = (),
    trained: Sequence[str] = (),
) -> str:
    """Return the README.md of a fine-tuned folder: its scores on the task's dev set and its settings.

    Args:
        head: A key of PIPELINES.
        task: The task.
        metrics: The scores, as `score_model` returns them.
        settings: How it was trained.
        remark: A remark on the scores.
        origin: What it was made of.
        constant: The scores of the constant answer, see `tasks.dev_outputs`.
        loader: As in `model_card`.
        teachers: The names of the fine-tuned models that it learned from.
        trained: Sentences on how it was trained.
    """
    origin, constant = origin or Provenance(), constant or {}
    rows = [
        {"metric": name.replace("_", " "), "value": value, "constant": constant.get(name)}
        for name, value in metrics.items()
    ]
    columns = {"metric": "on the dev set", "value": "value"} | ({"constant": "constant answer"} if constant else {})
    remark = f"{remark}\n\n" if remark else ""
    labels = ", ".join(f"{number} is `{label}`" for number, label in enumerate(task.labels))
    named = " and ".join(f"`{name}`" for name in teachers)
    learned_from = f", and distilled from {named}, fine-tuned on the same task" if named else ""
    results = list(_task_results(head, task, metrics, origin.datasets))
    return (
        front_matter(
            head,
            **provenance_entries(origin),
            tags=card_tags(origin),
            metrics=list(dict.fromkeys(result.metric_type for result in results)),
            model_name=f"A model for {task.name}",
            eval_results=results,
        )
        + f"# A model for {task.name}\n\nAn encoder fine-tuned on the task {task.name} with ds-distill"
        + f"{made_of(origin)}{learned_from}.\n\n"
        + usage_section(
            "pair" if len(task.texts) == 2 and not task.spans else "multi-label" if task.multi_label else head,
            loader=loader,
        )
        + (f"Its labels: {labels}.\n\n" if labels else "")
        + f"## Measured\n\n{table(rows, columns)}\n\n{remark}"
        + training_section(origin, trained)
        + limitations_section(origin, f"Nothing but the scores above, on the dev set of {task.name}, was measured.")
        + "## Settings\n\n```json\n"
        + json_text(settings, indent=2)
        + "\n```\n"
    )


def _task_results(head: str, task: Task, metrics: dict[str, float | None], datasets: list[str]) -> Iterator:
    """Yield the dev scores of a fine-tuned model as EvalResults."""
    from huggingface_hub import EvalResult

    for name, value in metrics.items():
        metric = next((known for known in task.metrics if name.endswith(known)), name)
        part = name.removesuffix(metric).rstrip("_")  # of a second dev set
        split = next((split for split in task.validation if part and split.endswith(part)), task.validation[0])
        if is_measured(value):
            yield EvalResult(
                task_type=PIPELINES[head],
                dataset_type=task.hub[0] if datasets else task.name,
                dataset_name=task.name if datasets else f"{task.name}, local files",
                dataset_config=task.hub[1] if datasets else None,
                dataset_split=split,
                metric_type=HUB_METRICS.get(metric, metric),
                metric_name=name.replace("_", " "),
                metric_value=value,
            )


def _objective(recipe: dict) -> list[str]:
    """Return sentences on what a run was trained to do beyond the usual; the recipe is as of `model_card`."""
    data = recipe.get("data")  # by dotted key, this is the text's fingerprint
    clean = data.get("clean_fraction") if isinstance(data, dict) else recipe.get("data.clean_fraction")
    stages = recipe.get("stages", [])
    remarks = (
        [f"{clean:.3g} of its training sequences, others in each epoch, were shown without masks."] if clean else []
    )
    if len(stages) > 1:
        shares = ", ".join(f"{stage['share']:.3g}" for stage in stages)
        remarks.append(
            f"It was trained in {len(stages)} stages with these shares of the steps: {shares}. See the recipe."
        )
    if rounded := stages and stages[-1].get("quantize"):
        remarks.append(
            f"In the {'last stage' if len(stages) > 1 else 'training'} it computed as the file of the format {rounded} "
            "does, and so did the student of the held-out figures; the weights in this folder are not rounded."
        )
    return remarks


def _without_folders(value: object) -> object:
    """Return a recipe's values fit for a published file: only the name of an absolute path."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value
