"""What the models of a study cost in each runtime and what they are worth: measured times and sizes joined with scores.

`python -m benchmarks.inference.pareto` writes what this module reads:

    PARETO/pareto.json    times and sizes, see `ParetoFile`
    PARETO/scores/STUDY/BACKEND/TASK/MODEL/seed=N.safetensors    what an exported file answered on a task's dev set
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds_distill.study.bootstrap import Estimate
from ds_distill.study.comparisons import draw_scores, estimate_mean, estimate_share
from ds_distill.study.outputs import TaskOutputs, load_outputs
from ds_distill.study.plan import Study
from ds_distill.study.rows import collect_rows
from ds_distill.study.scheduler import make_folder_name
from ds_distill.study.variants import TEACHER
from ds_distill.tasks.dev_outputs import DevOutputs
from ds_distill.utils.errors import UserError

FILE = "pareto.json"


@dataclass
class ParetoFile:
    """The content of pareto.json.

    Attributes:
        machine: The machine in words.
        date: The day of the first measurement.
        threads: How many threads each model has.
        shapes: The measured shapes, such as "1 × 128" for one sequence of 128 tokens.
        backends: By name, {runtime, precision, exact}. An exact one computes what PyTorch computes in fp32, except for
            rounding, so that PyTorch's scores are its own.
        models: {study, model, measured}: the name of a study's folder or null, the name of the model there, and its key
            in `measured`. Models of the same shape share one.
        measured: By key, {shape, parameters, positions, megabytes: {backend: size of the file}}; the shape is a digest,
            by which a model is known again.
        turns: {round, measured, backend, shape, milliseconds}: the median of a turn. Turns with the same number of the
            round were measured side by side.
    """

    machine: str
    date: str
    threads: int
    shapes: list[str]
    backends: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> ParetoFile:
        """Return the content of folder/pareto.json; raise UserError where it is damaged."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise UserError(f"{folder / FILE}: damaged ({error}); remove it and measure again") from None

    def times(self, measured: str, backend: str, shape: str) -> dict[int, float]:
        """Return the milliseconds of a call in each round."""
        key = (measured, backend, shape)
        return {
            turn["round"]: turn["milliseconds"]
            for turn in self.turns
            if (turn["measured"], turn["backend"], turn["shape"]) == key
        }


@dataclass(frozen=True)
class Combination:
    """A model of a study as a file of a runtime.

    Attributes:
        model: The model's row in the study's report.
        runtime: The runtime.
        precision: The arithmetic, such as "int8".
        milliseconds: By shape, the median over the rounds.
        rounds: By shape, the fastest and the slowest round.
        speedups: By shape, the time of the teacher in fp32 in the same runtime divided by this one, in the median over
            the rounds that both have.
        megabytes: The size of the file.
        worth: The model's mean over the tasks, as a share of its teacher's where that has scores, in percent; None
            where not all tasks were run.
        is_own: Whether `worth` was measured on this file; else on the model in PyTorch, in fp32.
        certain: Whether `worth` was measured on this file, or this file computes what PyTorch does.
    """

    model: str
    runtime: str
    precision: str
    milliseconds: dict[str, float]
    rounds: dict[str, tuple[float, float]]
    speedups: dict[str, float]
    megabytes: float
    worth: Estimate | None
    is_own: bool
    certain: bool


@dataclass(frozen=True)
class Combinations:
    """The measured combinations of a study, by rising time at the first shape.

    Attributes:
        tasks: The tasks that each `worth` is of.
        is_share: Whether each is a share of the teacher's.
        all: The combinations.
        alike: Models that were measured as another one, by that one's name.
    """

    tasks: list[str]
    is_share: bool
    all: list[Combination]
    alike: dict[str, list[str]]


def own_scores_file(folder: Path, study: str, backend: str, task: str, model: str, seed: int) -> Path:
    """Return the file with what an exported file answered on a task's dev set."""
    return folder / "scores" / study / backend / task / make_folder_name(model) / f"seed={seed}.safetensors"


def combine(results: ParetoFile, folder: Path, study_folder: Path) -> Combinations:
    """Return the combinations of a study that were measured, with their scores.

    Args:
        results: The measurements.
        folder: Their folder.
        study_folder: The study's folder, whose name stands in `results`.
    """
    study = Study.from_dict(json.loads((study_folder / "study.json").read_text(encoding="utf-8")))
    rows, name = collect_rows(study, study_folder), study_folder.resolve().name
    keys = {entry["model"]: entry["measured"] for entry in results.models if entry["study"] in (name, None)}
    outputs = load_outputs(study, study_folder, rows)
    seeds = {
        (task, row["model"]): [seed["seed"] for seed in result["seeds"]]
        for row in rows
        for task, result in row["tasks"].items()
    }
    own = {
        task: {
            backend: _read_own_outputs(folder, name, backend, task, part, seeds)
            for backend, about in results.backends.items()
            if not about["exact"]
        }
        for task, part in outputs.items()
    }
    draws = draw_scores(
        {
            task: TaskOutputs(
                part.metric,
                part.runs
                | {_own_name(model, backend): runs for backend, by in own[task].items() for model, runs in by.items()},
            )
            for task, part in outputs.items()
        }
    )
    is_share = any(TEACHER in draws[task] for task in draws)
    tasks = [task for task in study.labels if task in draws and (TEACHER in draws[task] or not is_share)]
    worths: dict[str, Estimate | None] = {}
    for model in {model for task in tasks for model in draws[task] if model}:
        if all(model in draws[task] for task in tasks):
            worths[model] = (estimate_share if is_share else estimate_mean)(draws, tasks, model)

    def measured_as(row: dict) -> str | None:
        """Return the key of the measurements of a row's model, or else of the student that it was fine-tuned from."""
        return keys.get(row["model"]) or keys.get(row.get("student", row["model"]))

    found = []
    for row in rows:
        model, key = row["model"], measured_as(row)
        if key is None:
            continue
        for backend in results.backends:
            own_worth = worths.get(_own_name(model, backend))
            worth = worths.get(model) if own_worth is None else own_worth
            found += _measure(results, model, key, keys.get(TEACHER), backend, worth, own_worth is not None)
    first = results.shapes[0]
    found.sort(key=lambda one: (one.milliseconds.get(first, float("inf")), -(one.worth or (0,))[0]))
    measured = {row["model"]: key for row in rows if (key := measured_as(row))}
    return Combinations(tasks, is_share, found, _group_alike(measured, keys))


def _group_alike(measured: Mapping[str, str], keys: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the models that have the measurements of another one, by that one's name.

    Args:
        measured: The key of the measurements of each model.
        keys: The key of those of each model that was to be measured itself; the first one of a key stands for it.
    """
    alike: dict[str, list[str]] = {}
    for model, key in measured.items():
        representative = next(name for name in keys if keys[name] == key)
        if representative != model:
            alike.setdefault(representative, []).append(model)
    return alike


def _own_name(model: str, backend: str) -> str:
    """Return the name under which an exported file's scores are drawn, which no model has."""
    return f"{model}\n{backend}"


def _read_own_outputs(
    folder: Path, study: str, backend: str, task: str, part: TaskOutputs, seeds: Mapping[tuple[str, str], list[int]]
) -> dict[str, list[DevOutputs]]:
    """Return by model what its exported files answered, of the models of which all seeds were scored."""
    found = {}
    for model, runs in part.runs.items():
        files = [own_scores_file(folder, study, backend, task, model, seed) for seed in seeds[task, model]]
        if files and all(file.is_file() for file in files):
            own = [DevOutputs.load(file) for file in files]
            if all(run.data == runs[0].data for run in own):
                found[model] = own
    return found


def _measure(
    results: ParetoFile,
    model: str,
    key: str,
    teacher: str | None,
    backend: str,
    worth: Estimate | None,
    is_own: bool,
) -> list[Combination]:
    """Return a model in a backend as a list of one combination, or of none where it was not measured."""
    about = results.backends[backend]
    exact = (
        name for name, other in results.backends.items() if other["exact"] and other["runtime"] == about["runtime"]
    )
    reference = next(exact, backend)
    milliseconds, rounds, speedups = {}, {}, {}
    for shape in results.shapes:
        times = results.times(key, backend, shape)
        if not times:
            continue
        milliseconds[shape] = statistics.median(times.values())
        rounds[shape] = min(times.values()), max(times.values())
        others = results.times(teacher, reference, shape) if teacher and results.backends[reference]["exact"] else {}
        if ratios := [others[number] / time for number, time in times.items() if number in others]:
            speedups[shape] = statistics.median(ratios)
    size = results.measured.get(key, {}).get("megabytes", {}).get(backend)
    if not milliseconds or size is None:
        return []
    certain = about["exact"] or is_own
    return [
        Combination(
            model, about["runtime"], about["precision"], milliseconds, rounds, speedups, size, worth, is_own, certain
        )
    ]
