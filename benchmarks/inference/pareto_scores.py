"""The scores of a study's fine-tuned models as exported files, example by example."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel

from benchmarks.inference.backends import BACKENDS, Row
from benchmarks.inference.suite import prepare
from ds_distill.exporters.model import ExportModel
from ds_distill.exporters.runtimes import Runner
from ds_distill.finetune.data import load_data
from ds_distill.finetune.dev_outputs import answer_again
from ds_distill.study.pareto_points import own_scores_file
from ds_distill.study.plan import Study
from ds_distill.study.rows import collect_rows
from ds_distill.study.scheduler import make_folder_name
from ds_distill.tasks.own_task import find_task, get_label
from ds_distill.utils.console import log
from ds_distill.utils.errors import expand_user


class FileModel(torch.nn.Module):
    """A model's exported file in the place of the model: it takes and returns tensors as the model does."""

    def __init__(self, source: ExportModel, run: Runner):
        super().__init__()
        self.config, self.names, self.head, self.run = source.model.config, source.inputs, source.head, run
        self.device_of_inputs = torch.nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, input_ids, attention_mask, token_type_ids=None) -> Any:
        """Return the outputs by the names that the model's own class gives them, fp32."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        outputs = [torch.as_tensor(value) for value in self.run({name: given[name].numpy() for name in self.names})]
        if self.head == "question-answering":
            return _Outputs(start_logits=outputs[0], end_logits=outputs[1])
        return _Outputs(logits=outputs[0])


class _Outputs:
    def __init__(self, **outputs: torch.Tensor):
        vars(self).update(outputs)


def score_files(study: Study, folder: Path, output: Path, backends: Sequence[str], threads: int) -> None:
    """Score the exported files of a study's fine-tuned models on the tasks' dev sets, those that are not scored yet.

    Args:
        study: The plan.
        folder: The study's folder.
        output: The folder to write below, see `own_scores_file`.
        backends: The backends whose answers differ from PyTorch's in fp32.
        threads: How many threads a runtime has.
    """
    rows, name = collect_rows(study, folder), folder.resolve().name
    for given in study.tasks:
        task, data = get_label(given), None
        for row in rows:
            for seed in [result["seed"] for result in row["tasks"].get(task, {"seeds": []})["seeds"]]:
                files = {
                    backend: own_scores_file(output, name, backend, task, row["model"], seed) for backend in backends
                }
                run = folder / "tasks" / task / make_folder_name(row["model"]) / f"seed={seed}"
                missing = [backend for backend, file in files.items() if not _is_of(file, run)]
                if not missing:
                    continue
                if not (run / "model" / "config.json").is_file():
                    log(f"not scored: {run}: the model is gone")
                    continue
                if data is None:
                    place = study.get_task_data(given)
                    where = str(expand_user(place)) if place else None
                    data = load_data(find_task(given, where), where)
                _score_run(run, data, missing, files, threads)


def _is_of(file: Path, run: Path) -> bool:
    """Return whether a file has what a run's model answered, and not that of a run that was there before it."""
    result = run / "result.json"
    return file.is_file() and (not result.is_file() or file.stat().st_mtime_ns >= result.stat().st_mtime_ns)


def _score_run(run: Path, data, backends: list[str], files: dict[str, Path], threads: int) -> None:
    task = data.task
    head = "question-answering" if task.spans else "token-classification" if task.tokens else "classification"
    with tempfile.TemporaryDirectory(prefix="pareto-") as scratch:
        [(source, exported)] = prepare({"model": run / "model"}, head, backends, Path(scratch), []).values()
        for backend in backends:
            row = Row(run.parent.name, backend, head, threads, run / "model", exported, source.positions)
            loaded = BACKENDS[backend].load(row)
            model = cast(PreTrainedModel, FileModel(source, _as_arrays(loaded)))
            log(f"scoring {run.parent.name}, {task.name}, {run.name}, {BACKENDS[backend].label}")
            with torch.no_grad():
                outputs, _ = answer_again(run, data, model)
            files[backend].parent.mkdir(parents=True, exist_ok=True)
            outputs.save(files[backend])


def _as_arrays(run) -> Runner:
    def call(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [value.float().cpu().numpy() if torch.is_tensor(value) else value for value in run(inputs)]

    return call
