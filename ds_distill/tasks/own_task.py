"""Tasks that a user describes in a YAML file: the files, columns, labels and metrics of a task of their own."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

from ds_distill.config.yaml_text import load_keys, read_recipe
from ds_distill.tasks.catalog import TASKS, OwnData, Task, get_task, normalize_name
from ds_distill.tasks.examples import FILE_FORMATS, get_file_suffix
from ds_distill.tasks.tagged import OUTSIDE, tags_of_types
from ds_distill.utils.errors import UserError, did_you_mean, expand_user

SUFFIXES = (".yaml", ".yml")
TAGGED_FORMATS = (".conll", ".bio", ".iob", ".iob2", ".txt")  # a word and its tag per line
# Each kind's metrics. The first are those that a task has unless it names others.
METRICS = {
    "single-label": ("accuracy", "f1_macro", "f1", "matthews"),
    "multi-label": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson", "spearman"),
    "token-classification": ("f1", "precision", "recall", "accuracy"),
}
DEFAULTS = {"single-label": 1, "multi-label": 2, "regression": 2, "token-classification": 3}
KEYS = ("name", "kind", "data", "train", "dev", "dev_share", "text", "label", "labels", "separator", "metric")
DEV_NAMES = ("dev", "validation")


def is_task_file(name: str) -> bool:
    """Return whether the name of a task is that of a YAML file."""
    return name.endswith(SUFFIXES)


def get_label(name: str) -> str:
    """Return what stands for a task in folders and tables: its name, or its file's without the suffix."""
    return Path(name).stem if is_task_file(name) else name


def find_task(name: str, data: str | None = None) -> Task:
    """Return a task by its name, or the one that a YAML file describes.

    Args:
        name: The name of a task, or a file's.
        data: The value of --data: the folder of a task's files.

    Raises:
        UserError: There is no such task, the file has a mistake, or the task's files are missing.
            The message has the key, the value and the remedy.
    """
    if is_task_file(name):
        if data:
            raise UserError(f"--data {data}: {name} names its data itself; change `data` there, and leave --data out")
        return load_task(expand_user(name))
    task = get_task(name)
    if not task.tokens:
        return task
    if not data:
        raise UserError(
            f"--task {name}: --data is missing; give a folder with train.conll and dev.conll, which have a word and "
            "its tag per line and an empty line after each sentence"
        )
    folder, option = expand_user(data), f"--data {data}"
    formats = (*TAGGED_FORMATS, *FILE_FORMATS)
    train, dev = (find_split(folder, names, formats, option) for names in (("train",), DEV_NAMES))
    return replace(task, own=OwnData(option, train, dev, label=("tags",)))


def load_task(file: Path) -> Task:
    """Return the task that a YAML file describes; see the guide's 'Use your own task'.

    Raises:
        UserError: The file has a mistake. The message has the file, the key, the value and the
            remedy.
    """
    if not file.is_file():
        raise UserError(f"--task {file}: no such file; give the YAML file of a task, or one of {', '.join(TASKS)}")
    source = str(file)
    keys = {
        key: value
        for key, value in load_keys(read_recipe(file, source), source, "text: text").items()
        if value is not None
    }
    for key in keys:
        if key not in KEYS:
            raise UserError(f"{source}: {key}: no such key{did_you_mean(key, KEYS)}; the keys are {', '.join(KEYS)}")
    kind = _one(keys, "kind", source, "single-label")
    if kind not in METRICS:
        raise UserError(
            f"{source}: kind: {kind}: no such kind of task{did_you_mean(kind, METRICS)}; the kinds are "
            f"{', '.join(METRICS)}"
        )
    name = _one(keys, "name", source, file.stem)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{source}: name: {name!r}: must have letters, digits, _, - and . only; write name: my_task")
    if normalize_name(name) in {normalize_name(known) for known in TASKS}:
        raise UserError(
            f"{source}: name: {name}: is the name of a task that this program has; write another, such as "
            f"name: my_{name}"
        )
    metrics = _metrics(keys, kind, source)
    texts = _texts(keys, kind, source)
    label, labels = _labels(keys, kind, source)
    if both := [column for column in texts if column in label]:
        raise UserError(
            f"{source}: label: {both[0]}: is a column of the text, too, so a model would read the answer; name the "
            "column of the label"
        )
    if kind == "token-classification" and metrics != ("accuracy",) and labels:
        if any(tag == OUTSIDE or tag[:2] in ("B-", "I-") for tag in labels):
            raise UserError(
                f"{source}: labels: {', '.join(labels)}: write the types alone, such as person for B-person and "
                "I-person"
            )
        labels = tags_of_types(labels)
    return Task(
        name,
        texts,
        labels,
        metrics,
        ("", None),
        tokens=kind == "token-classification",
        multi_label=kind == "multi-label",
        labels_from_data=kind != "regression" and not labels,
        own=_own_data(keys, kind, label, file),
    )


def _one(keys: dict, key: str, source: str, default: str = "") -> str:
    """Return the one value of a key."""
    value = keys.get(key, default)
    if not isinstance(value, str) or not (value.strip() or not default):
        raise UserError(f"{source}: {key}: {value!r}: must be one value, such as {key}: {default or 'VALUE'}")
    return value


def _several(keys: dict, key: str, source: str) -> tuple[str, ...]:
    """Return the values of a key that has one or a list of them."""
    value = keys[key]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(entry, str) and entry.strip() for entry in values):
        raise UserError(f"{source}: {key}: {value!r}: must be one value, or a list of values: [one, another]")
    if twice := [entry for entry in values if values.count(entry) > 1]:
        raise UserError(f"{source}: {key}: {twice[0]} is given twice; remove one")
    return tuple(values)


def _metrics(keys: dict, kind: str, source: str) -> tuple[str, ...]:
    known = METRICS[kind]
    metrics = _several(keys, "metric", source) if "metric" in keys else known[: DEFAULTS[kind]]
    for metric in metrics:
        if metric not in known:
            raise UserError(
                f"{source}: metric: {metric}: no metric of a {kind} task{did_you_mean(metric, known)}; its metrics are "
                f"{', '.join(known)}"
            )
    if kind == "token-classification" and "accuracy" in metrics and len(metrics) > 1:
        raise UserError(
            f"{source}: metric: {', '.join(metrics)}: accuracy is for tags of any kind, and the others for entities in "
            "the BIO scheme; give either"
        )
    return metrics


def _texts(keys: dict, kind: str, source: str) -> tuple[str, ...]:
    texts = _several(keys, "text", source) if "text" in keys else ()
    tokens = kind == "token-classification"
    if not texts and not tokens:
        raise UserError(f"{source}: text is missing; name the column of the text, or both of a pair: [first, second]")
    if len(texts) > (1 if tokens else 2):
        most = "one column, of words" if tokens else "one column, or the two of a pair"
        raise UserError(f"{source}: text: {', '.join(texts)}: must be {most}")
    return texts or ("tokens",)


def _labels(keys: dict, kind: str, source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (the columns of the label, the names of the labels, if they are known without the data)."""
    label = _several(keys, "label", source) if "label" in keys else ("tags",) if kind == "token-classification" else ()
    if not label:
        raise UserError(f"{source}: label is missing; name the column of the label")
    labels = _several(keys, "labels", source) if "labels" in keys else ()
    if kind == "regression" and labels:
        raise UserError(f"{source}: labels: {', '.join(labels)}: a regression task predicts a number; leave labels out")
    if len(label) > 1 and (kind != "multi-label" or labels):
        raise UserError(
            f"{source}: label: {', '.join(label)}: "
            + (
                "columns of 0 and 1 give the labels their names; leave labels out"
                if kind == "multi-label"
                else f"a {kind} task has one column of labels; name one, or write kind: multi-label"
            )
        )
    if kind == "single-label" and len(labels) == 1:
        raise UserError(f"{source}: labels: {labels[0]}: a task needs at least two labels")
    return label, label if len(label) > 1 else labels


def _own_data(keys: dict, kind: str, label: tuple[str, ...], file: Path) -> OwnData:
    source = str(file)
    given = _one(keys, "data", source, ".")
    place = file.parent / expand_user(given)
    formats = (*(TAGGED_FORMATS if kind == "token-classification" else ()), *FILE_FORMATS)
    separator = keys.get("separator", ",")
    if not isinstance(separator, str) or not separator:
        raise UserError(f"{source}: separator: {separator!r}: must be the text between two labels, such as ','")
    if "separator" in keys and (kind != "multi-label" or len(label) > 1):
        raise UserError(f"{source}: separator: is for a multi-label task with one column of labels; leave it out")
    if not place.exists():
        raise UserError(f"{source}: data: {given}: there is no {place}; give a file or a folder, seen from {source}")
    if place.is_dir():
        train = find_split(place, (_one(keys, "train", source, "train"),), formats, f"{source}: train")
    elif "train" in keys:
        raise UserError(f"{source}: train: {keys['train']}: data is a file; give a folder as data, or leave train out")
    else:
        train = _check_format(place, formats, f"{source}: data")
    share = _share(keys, source)
    if share:
        return OwnData(source, train, None, share, label, separator)
    names = (_one(keys, "dev", source),) if "dev" in keys else DEV_NAMES
    folder = place if place.is_dir() else place.parent
    if "dev" not in keys and (place.is_file() or not any(_candidates(folder, name, formats) for name in names)):
        raise UserError(
            f"{source}: dev is missing, and {folder} has no file dev.* or validation.*; name the file of the dev set, "
            "or write dev_share: 0.1 to hold out a tenth of the training examples"
        )
    dev = find_split(folder, names, formats, f"{source}: dev")
    if dev.samefile(train):
        raise UserError(f"{source}: dev: {dev} is the training set; name another file, or write dev_share: 0.1")
    return OwnData(source, train, dev, 0.0, label, separator)


def _share(keys: dict, source: str) -> float:
    if "dev_share" not in keys:
        return 0.0
    if "dev" in keys:
        raise UserError(f"{source}: dev_share: dev names a dev set; leave out one of the two")
    value = _one(keys, "dev_share", source, "0.1")
    try:
        share = float(value)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UserError(f"{source}: dev_share: {value}: must be a number between 0 and 1, such as 0.1")
    return share


def find_split(folder: Path, names: tuple[str, ...], formats: tuple[str, ...], where: str) -> Path:
    """Return the file of a split in a folder: that of the first of `names` that has one.

    A name is a file's, or that of a split whose file is NAME.* in one of the formats, which may be
    compressed.

    Raises:
        UserError: There is none, or more than one. The message begins with `where`.
    """
    for name in names:
        if (folder / name).is_file():
            return _check_format(folder / name, formats, where)
        if files := _candidates(folder, name, formats):
            if len(files) > 1:
                shown = ", ".join(file.name for file in files)
                raise UserError(f"{where}: {folder} contains {shown}; name one of them, or remove the others")
            return files[0]
    have = ", ".join(sorted(file.name for file in folder.iterdir() if file.is_file())[:8]) if folder.is_dir() else ""
    raise UserError(
        f"{where}: {folder} has no file {' or '.join(f'{name}.*' for name in names)} ({', '.join(formats)}, plain, .gz "
        f"or .zst){f'; it has {have}' if have else ''}"
    )


def _candidates(folder: Path, name: str, formats: tuple[str, ...]) -> list[Path]:
    prefix = f"{name}."
    files = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in files if file.name.startswith(prefix) and get_file_suffix(file, formats))


def _check_format(file: Path, formats: tuple[str, ...], where: str) -> Path:
    if get_file_suffix(file, formats) is None:
        raise UserError(f"{where}: {file}: not a supported kind of file; give {', '.join(formats)}, plain, .gz or .zst")
    return file
