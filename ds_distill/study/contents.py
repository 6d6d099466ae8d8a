"""What a study's teacher and tasks hold.

A study that is resumed or grows days later names its teacher and its tasks by their paths. If a path
holds something else by then, its rows would not be of the same teacher, or not of the same examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ds_distill.study.plan import Study
from ds_distill.tasks.own_task import find_task, get_label
from ds_distill.utils.errors import UserError, expand_user

TEACHER = "teacher"  # beside it, a task is "task NAME"


def teacher_contents(study: Study) -> dict[str, str]:
    """Return what the weights of the teachers hold, as digests, by their names."""
    from ds_distill.models.folder import find_model_folder, weight_files  # a report need not wait for them

    digests = {}
    for name, given in _teachers(study).items():
        folder, digest = find_model_folder(given), hashlib.sha256()
        for file in weight_files(folder.path, folder.given):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        digests[name] = digest.hexdigest()
    return digests


def _teachers(study: Study) -> dict[str, str]:
    """Return the study's teacher, and those that are some students' or variants' own, each once, by what names them."""
    others = dict.fromkeys(study.get_teacher(name) for name in study.students)
    for variant in study.variants.values():
        others |= dict.fromkeys(filter(None, (study.find_task_teacher(label, variant) for label in study.labels)))
    return {TEACHER: study.teacher} | {f"{TEACHER} {other}": other for other in others if other != study.teacher}


def task_contents(study: Study, task: str) -> dict[str, str]:
    """Return what a task's files hold, as a digest of its examples, under its name.

    Raises:
        UserError: A file has a mistake, which would otherwise come up only when the task's turn comes.
    """
    from ds_distill.finetune.data import load_data  # It imports torch, and a report need not wait for that.

    data = study.get_task_data(task)
    read = load_data(find_task(task, data), str(expand_user(data)) if data else None)
    return {f"task {get_label(task)}": read.fingerprint}


def check_contents(study: Study, before: Mapping[str, str], now: Mapping[str, str], output: Path) -> None:
    """Raise UserError where a path holds something else than when the study began."""
    changed = [name for name, digest in now.items() if before.get(name, digest) != digest]
    if changed:
        places = _teachers(study) | {f"task {get_label(task)}": place_of(study, task) for task in study.tasks}
        others = ", ".join(f"{name} ({places[name]})" for name in changed)
        raise UserError(
            f"{output}: the study began with another {others}: choose another --output, or bring back what was there"
        )


def place_of(study: Study, task: str) -> str:
    """Return where a task's files come from, in words."""
    return study.get_task_data(task) or (task if task != get_label(task) else "the Hub")
