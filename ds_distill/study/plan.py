"""A study: students that differ in some settings, each distilled and then fine-tuned on tasks.

The study runs job by job, and the same command resumes it where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from ds_distill.config.recipe_file import RECIPES, SHIPPED_ROOT, dotted_keys, find_file, load_recipe_file
from ds_distill.config.renamed import current_name
from ds_distill.config.yaml_text import load_yaml, read_recipe
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.recipe import Recipe
from ds_distill.run_record import write_record
from ds_distill.study.scheduler import Job, make_folder_name, run_jobs, split_launch_command
from ds_distill.tasks.catalog import TASKS
from ds_distill.tasks.examples import split_files
from ds_distill.tasks.own_task import find_task, get_label, is_task_file
from ds_distill.utils.console import log, log_header, spinner
from ds_distill.utils.errors import UserError, did_you_mean, expand_user
from ds_distill.utils.files import read_summary, write_json

TEACHER, TASK_DISTILLATION = "teacher", "task distillation"
SECTION_PREFIXES = tuple(f"{room.name}." for room in fields(Recipe))
SETTINGS = tuple(Recipe().setting_names())
TEACHER_SETTINGS = ("match", "layers_first")  # of a fine-tuning; without a teacher they would be refused
FINETUNE_SETTINGS = tuple(setting.name for setting in fields(FinetuneConfig))
# These are the settings that `prepare` reads.
PREPARE_SETTINGS = (
    "data.mode",
    "data.sequence_length",
    "data.heldout_fraction",
    "data.column",
    "data.streaming",
    "data.workers",
    "training.seed",
)
# These settings decide a text's tokens. The seed decides which of its documents are held out; there
# the base's seed counts.
TOKEN_SETTINGS = PREPARE_SETTINGS[:4]


@dataclass
class Study:
    """The plan of a study.

    Args:
        base: The recipe that all students start from.
        tasks: The tasks by name, or the YAML files of a user's own; the file's name without its suffix
            stands for such a task.
        students: Maps each name to the dotted settings in which that student differs from `base`.
        include_teacher: Whether to fine-tune the teacher as well.
        seeds: How many seeds each fine-tuning has, unless its task has a number of its own.
        task_distillation: The students that are also fine-tuned with the fine-tuned teacher.
        finetune: The settings of every fine-tuning, by name. A task's own settings, and its own
            number of seeds, go under the task's name.
        launch: The command that starts a distillation, on several processes or hosts. If empty,
            this process's Python starts it.
        jobs: How many jobs run side by side. A distillation that `launch` starts always runs
            alone.
    """

    base: str
    teacher: str
    corpus: list[str]
    heldout: list[str]
    data: str | None
    students: dict[str, dict]
    tasks: list[str]
    seeds: int = 5
    include_teacher: bool = True
    task_distillation: list[str] = field(default_factory=list)
    finetune: dict = field(default_factory=dict)
    launch: str = ""
    jobs: int = 1

    def __post_init__(self) -> None:
        self.base = str(find_file(self.base, f"base: {self.base}", RECIPES))
        self.students = {
            name: {key: _as_written(value) for key, value in changes.items()} for name, changes in self.students.items()
        }

    @classmethod
    def from_dict(cls, plan: dict) -> Study:
        """Return the study that study.json holds; raise UserError where an earlier version wrote it."""
        if old := [key for key in plan if current_name(key)]:
            raise UserError(
                f"study.json was written by an earlier version: {old[0]} is now {current_name(old[0])}; begin the "
                "study again in a new --output"
            )
        return cls(**{name: value for name, value in plan.items() if name in cls.__dataclass_fields__})

    @property
    def labels(self) -> list[str]:
        """What stands for each task in folders and tables."""
        return [get_label(task) for task in self.tasks]

    def get_task_data(self, task: str) -> str | None:
        """Return the folder of a task's files; None where they come from the hub, or its YAML file names them."""
        return str(Path(self.data) / task) if self.data and not is_task_file(task) else None

    def get_finetune_settings(self, task: str) -> tuple[int, dict]:
        """Return how many seeds a task's fine-tunings have, and their settings."""
        settings = (
            {"seeds": self.seeds}
            | {key: value for key, value in self.finetune.items() if key not in (*TASKS, *self.labels)}
            | (self.finetune.get(get_label(task)) or {})
        )
        return settings.pop("seeds"), settings

    def check(self) -> None:
        """Raise UserError for mistakes that would end the study hours later.

        Examples are a task without files and a setting that does not exist.
        """
        self._check_tasks()
        self._check_students()
        self._check_folders()
        self._check_inputs()

    def _check_tasks(self) -> None:
        names = (*TASKS, *self.labels)
        malformed = [name for name, own in self.finetune.items() if name in names and not isinstance(own or {}, dict)]
        if malformed:
            raise UserError(
                f"finetune: {malformed[0]}: {self.finetune[malformed[0]]!r}: must map names of settings to values, "
                "such as {epochs: 3}"
            )
        for name in self.tasks:
            data = self.get_task_data(name)
            task, (seeds, settings) = find_task(name, data), self.get_finetune_settings(name)
            if type(seeds) is not int or seeds < 1:
                raise UserError(f"seeds of {name} = {seeds!r}: must be a whole number, 1 or more")
            for key in settings:
                if renamed_key := current_name(f"tuning.{key.removeprefix('tuning.')}"):
                    if renamed_key.removeprefix("finetune.") not in settings:
                        raise UserError(f"finetune: {key}: is called {renamed_key.removeprefix('finetune.')} now")
                if key not in FINETUNE_SETTINGS:
                    raise UserError(
                        f"finetune: {key}: no such setting{did_you_mean(key, FINETUNE_SETTINGS)}; the settings are "
                        f"{', '.join(FINETUNE_SETTINGS)}"
                    )
            try:
                FinetuneConfig(**settings).check()
            except TypeError as error:
                raise UserError(
                    f"finetune of {name}: {settings}: a value that must be a number is not one ({error})"
                ) from None
            if data and not task.own:
                for split in ("train", *task.validation):
                    split_files(expand_user(data), split)
        if duplicates := {name for name in self.labels if self.labels.count(name) > 1}:
            raise UserError(f"tasks: {', '.join(sorted(duplicates))}: given twice; remove one")

    def _check_students(self) -> None:
        for name, changes in self.students.items():
            for key in changes:
                if key == "stages":
                    continue  # `distill` checks them with the rest of the recipe
                if not key.startswith(SECTION_PREFIXES):
                    raise UserError(
                        f"students: {name}: {key}: a student may differ only in dotted settings of the recipe, such as "
                        "losses.kl, and in stages"
                    )
                if renamed_key := current_name(key):
                    raise UserError(f"students: {name}: {key}: is called {renamed_key} now")
                if key not in SETTINGS:
                    raise UserError(f"students: {name}: {key}: no such setting{did_you_mean(key, SETTINGS)}")
        for name in self.task_distillation:
            if name not in self.students:
                raise UserError(
                    f"task_distillation: {name}: not a student of this study; the students are "
                    f"{', '.join(self.students)}"
                )
        if self.task_distillation and not self.include_teacher:
            raise UserError("task_distillation: needs the fine-tuned teacher; set include_teacher to true")
        if not self.students:
            raise UserError("students is empty; name at least one, such as `distilled: {}`")
        if not all(name.strip() for name in self.students):
            raise UserError("students: one of the names is empty; write a name")

    def _check_folders(self) -> None:
        folders: dict[str, str] = {}
        twice = [f"{student}, {TASK_DISTILLATION}" for student in self.task_distillation]
        for name in [TEACHER, *self.students, *twice]:
            other = folders.setdefault(make_folder_name(name), name)
            if other != name or (name == TEACHER and name in self.students):
                raise UserError(
                    f"students: {name!r} and {other!r} would share the folder {make_folder_name(name)}; rename "
                    "one of them"
                )

    def _check_inputs(self) -> None:
        if not Path(self.base).is_file():
            raise UserError(f"base: {self.base}: no such recipe, neither in the current folder nor in {SHIPPED_ROOT}")
        for key, value in (("--teacher", self.teacher), ("--corpus", self.corpus)):
            if not value:
                raise UserError(f"{key} is missing; give it on the command line or in the plan")
        try:
            starter = split_launch_command(self.launch)
        except ValueError as error:
            raise UserError(f"--launch {self.launch}: {error}") from None
        if self.jobs < 1:
            raise UserError(f"--jobs {self.jobs}: the number of jobs that run in parallel must be at least 1")
        if starter and not shutil.which(starter[0]):
            raise UserError(
                f"--launch {self.launch}: no such command; this project's launcher for all GPUs of a machine is "
                "./launch.sh"
            )


def _as_written(value: object) -> object:
    """Return a setting's value in the form that YAML and JSON have, without dataclasses."""
    return (
        [asdict(cast(Any, entry)) if is_dataclass(entry) else entry for entry in value]
        if isinstance(value, list)
        else value
    )


def make_jobs(study: Study, output: Path) -> list[Job]:
    """Return the jobs of a study, in order.

    Students that read text in the same way share its tokens.
    """
    recipe, corpus, tokens = ("--config", study.base), ("--corpus", *study.corpus), output / "tokens"
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
        if is_unread
        else []
    )
    for name, changes in study.students.items():
        settings = [
            word
            for key, value in changes.items()
            for word in (f"--{key}", value if isinstance(value, str) else json.dumps(value))
        ]
        text = ("--tokens", str(tokens)) if name in sharing else corpus
        jobs.append(
            Job(
                f"distill {name}",
                output / "students" / make_folder_name(name),
                ("distill", *recipe, "--teacher", study.teacher, *text, *heldout, *settings),
                depends_on=(tokens,) if name in sharing else (),
                launcher=study.launch,
            )
        )
    for task in study.tasks:
        seeds, task_settings = study.get_finetune_settings(task)
        words = (
            "finetune",
            "--task",
            task,
            "--seeds",
            str(seeds),
            *(["--data", data] if (data := study.get_task_data(task)) else []),
            *_as_words({key: value for key, value in task_settings.items() if key not in TEACHER_SETTINGS}),
        )
        with_teacher = (
            *words,
            *_as_words({key: task_settings[key] for key in TEACHER_SETTINGS if key in task_settings}),
        )
        folder, label = output / "tasks" / get_label(task), get_label(task)
        if study.include_teacher:
            jobs.append(Job(f"{label}, {TEACHER}", folder / TEACHER, words, model=study.teacher, seeds=seeds))
        for name in study.students:
            student = output / "students" / make_folder_name(name)
            jobs.append(Job(f"{label}, {name}", folder / make_folder_name(name), words, model=student, seeds=seeds))
            if name in study.task_distillation:
                jobs.append(
                    Job(
                        f"{label}, {name}, {TASK_DISTILLATION}",
                        folder / make_folder_name(f"{name}, {TASK_DISTILLATION}"),
                        with_teacher,
                        model=student,
                        teacher=folder / TEACHER,
                        seeds=seeds,
                    )
                )
    return jobs


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


def _load_base(base: str) -> object:
    """Return what study.json keeps of the base.

    That is the recipe as PyYAML reads it, because earlier studies were kept that way, or as this
    project reads it where PyYAML cannot.
    """
    text = read_recipe(Path(base), f"base: {base}")
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return load_yaml(text, f"base: {base}")


def run_study(study: Study, output: Path, check_command: Callable[[list[str]], Recipe | None]) -> dict:
    """Run the jobs that are not done yet and return the summary, which has one row per model.

    Args:
        study: The plan.
        output: The study's folder.
        check_command: Returns the recipe of a command, if the command has one. It raises UserError
            for words that the command would refuse, which would otherwise come up only when the
            command's turn comes.
    """
    study.check()
    jobs, recipes = make_jobs(study, output), {}
    for job in jobs:
        try:
            recipes[job.what] = check_command([*job.argv, "--output", str(job.output)])
        except UserError as error:
            raise UserError(f"{job.what}: {error}") from error
    output.mkdir(parents=True, exist_ok=True)
    plan = output / "study.json"
    record = json.loads(json.dumps(asdict(study) | {"recipe": _load_base(study.base)}, default=str))
    del record["launch"], record["jobs"]  # How the study is run may change.
    if plan.is_file() and (before := json.loads(plan.read_text(encoding="utf-8"))) != record:
        if changed := _get_changed_keys(_expand_home(before), record):
            raise UserError(f"{output} holds another study ({', '.join(changed)} changed): choose another --output")
    _read_tasks(study, jobs)
    students = [
        (job.what, cast(Recipe, recipes[job.what])) for job in jobs if job.argv[0] == "distill" and not job.done
    ]
    _check_teacher(study, students)
    write_json(plan, record)
    done, stored = sum(job.done for job in jobs), read_summary(output)
    if done == len(jobs):
        log(f"{output}: finished before ({done} of {done} jobs), nothing to do")
    else:
        log_header(
            {
                "study": f"{len(study.students)} students, {len(study.tasks)} tasks, {study.seeds} seeds each",
                "jobs": f"{len(jobs)}, of which {done} are done; {study.jobs} at a time",
                "output": str(output),
            }
        )
        run_jobs(jobs, study.jobs, output / "logs")
        write_record(output)
    summary = {"output": str(output), "rows": collect_rows(study, output)}
    return stored if stored == summary else summary


def _check_teacher(study: Study, students: list[tuple[str, Recipe]]) -> None:
    """Raise UserError if a student cannot be built from the teacher.

    Without this check the error would come up only after the text has been prepared. `students`
    holds (job, recipe) for each student that does not exist yet.
    """
    if not students:
        return
    with spinner("checking the teacher"):
        # This module imports torch, and a report need not wait for that.
        from ds_distill.models.folder import find_model_folder
        from ds_distill.preflight.models import check_teachers_complete, check_teachers_fit

        teachers, recipes = [find_model_folder(study.teacher)], {}
        for what, recipe in students:
            try:
                check_teachers_fit(teachers, recipe)
            except UserError as error:
                raise UserError(f"{what}: {error}") from error
            starts = recipe.student.from_, recipe.student.init_layers == "random"
            recipes[*starts, recipe.compares_logits, recipe.need_vocabulary] = recipe
        for recipe in recipes.values():  # those that ask for the same weights need one look
            check_teachers_complete(teachers, recipe)


def _read_tasks(study: Study, jobs: list[Job]) -> None:
    """Raise UserError for mistakes in a task's files, which would otherwise come up only when its turn comes."""
    from ds_distill.finetune.data import load_data  # It imports torch, and a report need not wait for that.

    for task in study.tasks:
        if any(job.argv[:3] == ("finetune", "--task", task) and not job.done for job in jobs):
            with spinner(f"reading {get_label(task)}"):
                data = study.get_task_data(task)
                load_data(find_task(task, data), str(expand_user(data)) if data else None)


def _expand_home(plan: dict) -> dict:
    """Return the plan with ~ expanded; earlier plans kept it as it was written."""
    paths = {
        key: value if isinstance(value, list) else [value]
        for key in ("teacher", "data", "corpus", "heldout")
        if (value := plan.get(key))
    }
    expanded = {key: [os.path.expanduser(path) for path in value] for key, value in paths.items()}
    return plan | {key: value if isinstance(plan[key], list) else value[0] for key, value in expanded.items()}


def _get_changed_keys(before: dict, now: dict) -> list[str]:
    """Return the keys under which a plan differs from the earlier one.

    Students, tasks with their settings, seeds and task distillations may be added.
    """
    earlier, later = Study.from_dict(before), Study.from_dict(now)
    compatible = {key: set(before[key]) <= set(now[key]) for key in ("tasks", "task_distillation")}
    compatible["students"] = all(now["students"].get(name) == changes for name, changes in before["students"].items())
    pairs = [(earlier.get_finetune_settings(task), later.get_finetune_settings(task)) for task in earlier.tasks]
    compatible["finetune"] = compatible["seeds"] = all(old == new and few <= many for (few, old), (many, new) in pairs)
    compatible["base"] = True  # The base may move; its content is under `recipe`.
    return [key for key in now if before.get(key) != now[key] and not compatible.get(key)]


def collect_rows(study: Study, output: Path) -> list[dict]:
    """Return one row per model, with its held-out figures and its task scores.

    The held-out figures are those of the pretraining, and each score comes with its seeds. What has
    not been run is not in the row.
    """
    rows: list[dict] = []
    names = [
        name
        for student in study.students
        for name in (student, *([f"{student}, {TASK_DISTILLATION}"] if student in study.task_distillation else []))
    ]
    for name in [*([TEACHER] if study.include_teacher else []), *names]:
        row: dict = {"model": name, "tasks": {}}
        summary_file = output / "students" / make_folder_name(name) / "summary.json"
        if summary_file.is_file():
            keys = ("tokens", "tokens_per_second", "parameters")
            row |= {
                key: value
                for key, value in json.loads(summary_file.read_text(encoding="utf-8")).items()
                if "heldout" in key or key in keys
            }
        for task in study.labels:
            file = output / "tasks" / task / make_folder_name(name) / "summary.json"
            if file.is_file():
                summary = json.loads(file.read_text(encoding="utf-8"))
                row["tasks"][task] = {
                    key: summary[key]
                    for key in ("metric", "metrics", "seeds", "constant", "examples", "truncated", "left_out")
                    if key in summary
                }
                if "parameters" in summary:
                    row.setdefault("parameters", summary["parameters"])
        rows.append(row)
    return rows
