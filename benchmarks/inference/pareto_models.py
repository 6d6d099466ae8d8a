"""The models whose score is drawn against time and size: those of studies, and others; equal shapes only once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from ds_distill.models.folder import find_model_folder, resolve_model_folder
from ds_distill.study.plan import Study
from ds_distill.study.scheduler import make_folder_name
from ds_distill.study.variants import TEACHER
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import read_json_object

# What a config says of a model's use and history. It decides neither its time nor its size.
USES = (
    "_name_or_path",
    "architectures",
    "dtype",
    "finetuning_task",
    "id2label",
    "label2id",
    "problem_type",
    "torch_dtype",
    "transformers_version",
)


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        study: The name of its study's folder; None for another model.
        name: Its name there.
        folder: Its Hugging Face folder.
    """

    study: str | None
    name: str
    folder: Path


def read_study(folder: Path) -> Study:
    """Return the study in a folder; raise UserError where there is none."""
    try:
        return Study.from_dict(read_json_object(folder / "study.json"))
    except (OSError, ValueError) as error:
        raise UserError(f"--study {folder}: no study.json can be read ({error}); give a study's --output") from error


def find_models(studies: Sequence[Path], others: Sequence[str], teacher: str | None) -> list[Model]:
    """Return the teacher and the finished students of each study, and the other models.

    Args:
        studies: The folders of studies.
        others: LABEL=FOLDER of each further model.
        teacher: The folder of the studies' teacher, where it is no longer at the place that their plans name.

    Raises:
        UserError: If a model is not there, or two have one name.
    """
    models = []
    for folder in studies:
        study, name = read_study(folder), folder.resolve().name
        option = "--teacher" if teacher else f"--study {folder}: give --teacher FOLDER, or the study's teacher at"
        models.append(Model(name, TEACHER, resolve_model_folder(teacher or study.teacher, option)))
        for student in study.students:
            export = folder / "students" / make_folder_name(student) / "export"
            if (export / "config.json").is_file():
                models.append(Model(name, student, export))
            else:
                log(f"not measured: {student} of {folder}: not distilled yet")
    for given in others:
        label, found, path = given.partition("=")
        if not (label and found and path):
            raise UserError(f"--model {given}: give LABEL=FOLDER")
        models.append(Model(None, label, resolve_model_folder(path, f"--model {label} =")))
    names = [(model.study, model.name) for model in models]
    for model in models:
        clash = names.count((model.study, model.name)) > 1
        if clash or (model.study is None and any(model.name == name for study, name in names if study)):
            raise UserError(f"{model.folder}: another model is named {model.name} as well; give it another name")
    return models


def describe_shape(folder: Path) -> str:
    """Return a digest of what decides an encoder's time and size: its config, and its weights' shapes."""
    from transformers import MODEL_MAPPING

    given = find_model_folder(str(folder))
    config = given.config
    prefix = MODEL_MAPPING[type(config)].base_model_prefix + "."
    kept = {key: value for key, value in config.to_dict().items() if key not in USES and "dropout" not in key}
    shapes: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="numpy") as weights:
            shapes |= {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    if any(name.startswith(prefix) for name in shapes):
        shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    encoder = {name: shape for name, shape in shapes.items() if not name.startswith("pooler.")}
    about = json.dumps([kept, given.linear_rank, sorted(encoder.items())], sort_keys=True, default=str)
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def assign_keys(models: Sequence[Model], shapes: dict[str, str]) -> list[str]:
    """Return under which key each model is measured: its name, or that of the first one with the same shape.

    Where a model of that name has another shape, the name of the study stands before it, or a number behind it.

    Args:
        models: The models.
        shapes: What was measured before, {key: `describe_shape`}; new keys are added.
    """
    keys = []
    for model in models:
        shape = describe_shape(model.folder)
        key = next((key for key, known in shapes.items() if known == shape), None)
        if key is None:
            of_study = [f"{model.study}: {model.name}"] if model.study else []
            names = itertools.chain([model.name], of_study, (f"{model.name} ({n})" for n in itertools.count(2)))
            key = next(name for name in names if name not in shapes)
            shapes[key] = shape
        keys.append(key)
    return keys
