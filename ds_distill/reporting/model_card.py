"""Model cards: the README.md of a folder that holds a model."""

import os
import re
from pathlib import Path

from ds_distill.reporting.tables import table
from ds_distill.utils.files import json_text

MADE_WITH = "made with ds-distill"
PIPELINES = {
    "masked-lm": "fill-mask",
    "classification": "text-classification",
    "question-answering": "question-answering",
    "encoder": "feature-extraction",
}
HELDOUT_POSITIONS = (
    " Those called `mask` are measured at the positions that show [MASK]; those called `mlm` at all selected "
    "positions, of which 80 % show [MASK], 10 % a random token (`random`) and 10 % the token itself (`kept`), where "
    "the answer is visible. Losses are in nats per position, accuracies are shares, `count` is the number of "
    "positions and `se` a standard error over sequences."
)


def front_matter(head: str, **extra: str) -> str:
    """Return the YAML that a model card begins with.

    Args:
        head: A key of PIPELINES.
        extra: Further keys, such as the license where it is known.
    """
    entries = {"library_name": "transformers", "pipeline_tag": PIPELINES[head]} | extra
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in entries.items()) + "---\n\n"


def model_card(title: str, summary: dict, recipe: dict, fingerprint: str) -> str:
    """Return the README.md of an export: measured figures, recipe and data fingerprint."""
    figures = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    figures = dict(sorted(figures.items(), key=lambda figure: not figure[0].startswith("heldout_mask_")))
    positions = HELDOUT_POSITIONS if "heldout_mask_loss" in figures else ""
    return (
        front_matter("masked-lm") + f"# {title}\n\nA masked language model {MADE_WITH}.\n\n"
        "## Measured\n\n"
        + table(
            [{"figure": key, "value": value} for key, value in figures.items()], {"figure": "figure", "value": "value"}
        )
        + f"\n\nHeld-out figures refer to the held-out documents and masks of this run.{positions}\n\n## Data\n\n"
        f"Fingerprint: `{fingerprint}`\n\n"
        "## Recipe\n\n```json\n" + json_text(_without_folders(recipe), indent=2) + "\n```\n"
    )


def task_card(head: str, task: str, metrics: dict[str, float | None], settings: dict, remark: str = "") -> str:
    """Return the README.md of a fine-tuned folder: its scores on the task's dev set and its settings.

    `remark` is a remark on the scores.
    """
    rows = [{"metric": name.replace("_", " "), "value": value} for name, value in metrics.items()]
    remark = f"{remark}\n\n" if remark else ""
    return (
        front_matter(head) + f"# A model for {task}\n\nAn encoder fine-tuned on the task {task} with ds-distill.\n\n"
        f"## Measured\n\n{table(rows, {'metric': 'on the dev set', 'value': 'value'})}\n\n{remark}"
        "## Settings\n\n```json\n" + json_text(settings, indent=2) + "\n```\n"
    )


def _without_folders(value: object) -> object:
    """Return a recipe's values fit for a published file: only the name of an absolute path."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.isabs(value) else value


def put_section(card: Path, heading: str, text: str) -> None:
    """Write the section `## heading` with `text` into the Markdown file `card`.

    It replaces the section of that name if there is one, and creates the file if there is none.
    """
    old_text = card.read_text(encoding="utf-8") if card.is_file() else ""
    section = f"## {heading}\n\n{text.strip()}\n"
    match = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", old_text, flags=re.M | re.S)
    if match:
        new_text = (
            old_text[: match.start()] + section + ("\n" if old_text[match.end() :] else "") + old_text[match.end() :]
        )
    else:
        new_text = (old_text.rstrip("\n") + "\n\n" if old_text else "") + section
    card.write_text(new_text, encoding="utf-8")
