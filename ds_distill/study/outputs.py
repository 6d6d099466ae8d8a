"""What the models of a study answered on the tasks' dev sets, by task, model and seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ds_distill.study.plan import Study
from ds_distill.study.scheduler import make_folder_name
from ds_distill.tasks.dev_outputs import FILE, DevOutputs
from ds_distill.tasks.own_task import find_task, get_label
from ds_distill.utils.errors import UserError, expand_user

if TYPE_CHECKING:
    from ds_distill.finetune.data import Data


@dataclass
class TaskOutputs:
    """The outputs of all models on one task.

    Attributes:
        metric: The task's first metric.
        runs: By model, one for each seed.
        problems: By model, why it has none.
    """

    metric: str
    runs: dict[str, list[DevOutputs]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def load_outputs(study: Study, folder: Path, rows: list[dict]) -> dict[str, TaskOutputs]:
    """Return the outputs of all finished fine-tunings, by task.

    A run of an earlier version kept none: its saved model is scored again on the study's data.

    Args:
        study: The plan.
        folder: The study's folder.
        rows: One row per model, from `collect_rows`.
    """
    outputs = {}
    for given in study.tasks:
        name, data = get_label(given), study.get_task_data(given)
        measured = [row for row in rows if name in row["tasks"]]
        if not measured:
            continue
        outputs[name] = task = TaskOutputs(measured[0]["tasks"][name]["metric"])
        reader = _Reader(given, str(expand_user(data)) if data else None)
        for row in measured:
            model, seeds = row["model"], [seed["seed"] for seed in row["tasks"][name]["seeds"]]
            place = folder / "tasks" / name / make_folder_name(model)
            try:
                runs = [reader.read(place / f"seed={seed}") for seed in seeds]
            except UserError as error:
                task.problems[model] = str(error)
                continue
            first = next(iter(task.runs.values()), runs)[0]
            if any(run.data != first.data for run in runs):
                task.problems[model] = f"it was scored on other data than {next(iter(task.runs), model)}"
            elif first.terms(task.metric) is None:
                task.problems[model] = f"{task.metric} has no paired comparison"
            else:
                task.runs[model] = runs
    return outputs


class _Reader:
    """Reads the outputs of runs on one task, and its data at most once."""

    def __init__(self, task: str, data: str | None):
        self.task, self.folder = task, data
        self._data: Data | None = None

    def read(self, run: Path) -> DevOutputs:
        """Return the outputs of a run; raise UserError where there are none and none can be made."""
        if (run / FILE).is_file():
            return DevOutputs.load(run / FILE)
        if not (run / "model").is_dir() or not (run / "result.json").is_file():
            raise UserError(f"{run} holds neither {FILE} nor the model")
        # These modules import torch, which a report of kept outputs need not wait for.
        from ds_distill.finetune.data import load_data
        from ds_distill.finetune.dev_outputs import score_again

        if self._data is None:
            self._data = load_data(find_task(self.task, self.folder), self.folder)
        return score_again(run, self._data)
