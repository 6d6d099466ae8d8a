"""The jobs of a study: commands of this project, each of which begins when its inputs are there."""

from __future__ import annotations

import json
from pathlib import Path

from ds_distill.config.recipe_file import dotted_keys, load_recipe_file
from ds_distill.study.plan import PREPARE_SETTINGS, TOKEN_SETTINGS, Study
from ds_distill.study.scheduler import Job, make_folder_name
from ds_distill.study.variants import TEACHER
from ds_distill.tasks.own_task import get_label


def make_jobs(study: Study, output: Path) -> list[Job]:
    """Return the jobs of a study, in order.

    Students that read text in the same way share its tokens, which are made here unless the plan names them.
    """
    recipe, corpus = ("--config", study.base), ("--corpus", *study.corpus)
    tokens = Path(study.tokens) if study.tokens else output / "tokens"
    heldout = ("--heldout", *study.heldout) if study.heldout else ()
    sharing = [name for name, changes in study.students.items() if not any(key in TOKEN_SETTINGS for key in changes)]
    is_unread = any(not (output / "students" / make_folder_name(name) / "summary.json").is_file() for name in sharing)
    jobs = (
        [
            Job(
                "prepare the text",
                tokens,
                ("prepare", "--tokenizer", study.teacher, *corpus, *_prepare_options(study.base)),
            )
        ]
        if is_unread and not study.tokens
        else []
    )
    for name, changes in study.students.items():
        settings = [
            word
            for key, value in changes.items()
            if key != TEACHER
            for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
        ]
        text = ("--tokens", str(tokens)) if name in sharing else corpus
        jobs.append(
            Job(
                f"distill {name}",
                output / "students" / make_folder_name(name),
                ("distill", *recipe, "--teacher", study.get_teacher(name), *text, *heldout, *settings),
                depends_on=(tokens,) if name in sharing and not study.tokens else (),
                launcher=study.launch,
            )
        )
    return [*jobs, *(job for task in study.tasks for job in _make_task_jobs(study, output, task))]


def _make_task_jobs(study: Study, output: Path, task: str) -> list[Job]:
    """Return the jobs on one task: its augmented texts where a variant reads them, and the fine-tunings."""
    data, label = study.get_task_data(task), get_label(task)
    folder, augmented = output / "tasks" / label, output / "augmented" / label
    files = ("--task", task, *(("--data", data) if data else ()))
    jobs = []
    if any(variant.augmented for variant in study.finetunings.values()):
        jobs.append(_make_augment_job(study, task, files, augmented))
    for name, variant in study.finetunings.items():
        seeds, settings = study.get_finetune_settings(task, variant)
        student = output / "students" / make_folder_name(variant.student)
        texts = ("--augmented", str(augmented)) if variant.augmented else ()
        jobs.append(
            Job(
                f"{label}, {name}",
                folder / make_folder_name(name),
                ("finetune", *files, "--seeds", str(seeds), *texts, *_as_words(settings)),
                depends_on=(augmented,) if variant.augmented else (),
                model=study.teacher if variant.student == TEACHER else student,
                teacher=(study.find_task_teacher(label, variant) or folder / TEACHER)
                if variant.task_distillation
                else None,
                every_teacher=variant.teachers == "all",
                seeds=seeds,
            )
        )
    return jobs


def _make_augment_job(study: Study, task: str, files: tuple[str, ...], output: Path) -> Job:
    cloze = study.cloze if study.has_spans(task) else 0
    questions = ("--cloze", str(cloze), "--corpus", *study.corpus) if cloze else ()
    words = ("augment", *files, "--model", study.teacher, "--copies", str(study.copies), *questions)
    return Job(f"{get_label(task)}, augmented texts", output, words)


def _as_words(settings: dict) -> tuple[str, ...]:
    return tuple(
        word
        for key, value in settings.items()
        for word in (f"--finetune.{key}", value if isinstance(value, str) else json.dumps(value))
    )


def _prepare_options(base: str) -> list[str]:
    """Return the base recipe's settings that `prepare` reads, as words of a command.

    A recipe may also hold a teacher and texts, which `prepare` does not take.
    """
    place = f"base: {base}"
    settings = dict(dotted_keys(load_recipe_file(Path(base), place)))
    return [
        word for key in PREPARE_SETTINGS if isinstance(settings.get(key), str) for word in (f"--{key}", settings[key])
    ]
