"""What the folder of a finished run says: a distillation, a pretraining or a fine-tuning."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ds_distill.config.renamed import read_identity
from ds_distill.recipe import Losses, Match
from ds_distill.run_folder import RunFolder
from ds_distill.training.state import Curves, read_curves
from ds_distill.utils.errors import UserError

# What decides which tokens are held out and how they are masked, as run.json names it. Figures of runs that differ in
# one of these do not compare.
HELDOUT_KEYS = (
    "data",
    "data.mlm_probability",
    "data.mlm_smoothing",
    "data.whole_word_masking",
    "data.attend_across_documents",
    "training.seed",
)


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        label: Its name in a report.
        path: Its folder.
        summary: The content of summary.json.
        identity: The content of run.json, under the names of today; empty where there is none.
        record: The content of record.json; empty for a run of an earlier version.
        curves: Its steps and held-out figures; empty for a fine-tuning.
    """

    label: str
    path: Path
    summary: dict[str, Any]
    identity: dict[str, Any]
    record: dict[str, Any]
    curves: Curves

    @property
    def is_finetuning(self) -> bool:
        """Whether the run is a fine-tuning on a task."""
        return _is_finetuning(self.summary)

    @property
    def kind(self) -> str:
        """What the run is, in words."""
        if self.is_finetuning:
            return f"fine-tuning on {self.summary['task']}"
        if self.has_teacher:
            return "distillation"
        return "training without the teacher" if "teacher" in self.identity else "pretraining"

    @property
    def objectives(self) -> list[Losses]:
        """The losses of each of the run's stages; of a run without stages, its losses."""
        return [self._losses(stage["losses"]) for stage in self.identity.get("stages") or [{"losses": {}}]]

    def _losses(self, changes: dict[str, Any]) -> Losses:
        """Return the recipe's losses with changes, without those that had no tokens, as no sequence was masked."""
        given = {
            field.name: self.identity[f"losses.{field.name}"]
            for field in fields(Losses)
            if f"losses.{field.name}" in self.identity
        }
        given |= changes
        losses = Losses(**given | {"match": [Match(**match) for match in given.get("match") or []]})
        return losses.without_vocabulary() if self.clean_fraction == 1 else losses

    @property
    def clean_fraction(self) -> float:
        """The share of the training sequences that were not masked."""
        return self.identity.get("data.clean_fraction", 0.0)

    @property
    def has_teacher(self) -> bool:
        """Whether a term of the run's loss compares the model with a teacher."""
        if self.is_finetuning:
            return bool(self.summary.get("teacher"))
        return "teacher" in self.identity and any(losses.need_teacher for losses in self.objectives)

    def compares_with(self, other: Run) -> bool:
        """Return whether both runs were evaluated on the same held-out tokens under the same masks."""
        counts = {run.summary.get("heldout_mask_count") for run in (self, other)} - {None}
        return len(counts) < 2 and all(self.identity.get(key) == other.identity.get(key) for key in HELDOUT_KEYS)


def is_run(folder: Path) -> bool:
    """Return whether `folder` is the folder of a finished run."""
    files = RunFolder(folder)
    return files.summary.is_file() and (files.curves.is_file() or _is_finetuning(_read(files.summary)))


def read_run(folder: Path, label: str) -> Run:
    """Return the finished run in `folder`.

    Raises:
        UserError: There is none, or a file of it is damaged.
    """
    files = RunFolder(folder)
    if not is_run(folder):
        begun = files.identity.is_file()
        raise UserError(
            f"{folder}: "
            + (
                "the run in it is not finished; resume it with its own command"
                if begun
                else "no finished run; give the --output folder of distill, pretrain or finetune"
            )
        )
    try:
        curves = read_curves(folder) if files.curves.is_file() else Curves([], {}, {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{files.curves} is damaged ({error}); run the run's own command again") from error
    identity = read_identity(_read(files.identity)) if files.identity.is_file() else {}
    return Run(label, folder, _read(files.summary), identity, read_record(folder), curves)


def read_record(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's record.json; empty where there is none, as in runs of earlier versions."""
    file = RunFolder(folder).record
    return _read(file) if file.is_file() else {}


def label_runs(folders: list[Path]) -> dict[str, Path]:
    """Return folders by the shortest ends of their paths that tell them apart."""
    paths = [folder.absolute() for folder in folders]
    for length in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        labels = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return dict(zip(labels, folders, strict=True)) if paths else {}


def _is_finetuning(summary: dict[str, Any]) -> bool:
    return "task" in summary and "seeds" in summary


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); run the run's own command again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged (no JSON object); run the run's own command again")
    return content
