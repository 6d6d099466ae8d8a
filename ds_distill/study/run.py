"""Running a study job by job; the same command resumes it where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import yaml

from ds_distill.config.losses import Match
from ds_distill.config.recipe_file import load_recipe_file
from ds_distill.config.yaml_text import load_yaml, read_recipe
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.recipe import Recipe
from ds_distill.run_record import write_record
from ds_distill.study.contents import check_contents, task_contents, teacher_contents
from ds_distill.study.jobs import make_jobs
from ds_distill.study.plan import Study
from ds_distill.study.rows import collect_rows
from ds_distill.study.scheduler import Job, run_jobs
from ds_distill.study.variants import TEACHER, Variant
from ds_distill.tasks.own_task import get_label, is_task_file
from ds_distill.utils.articles import counted
from ds_distill.utils.console import log, log_header, spinner
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.files import read_summary, write_json


def _load_base(base: str) -> object:
    """Return what study.json keeps of the base.

    That is the recipe as PyYAML reads it, because earlier studies were kept that way, or as this
    project reads it where PyYAML cannot. A recipe that it includes is kept by what it holds.
    """
    source = f"base: {base}"
    text = read_recipe(Path(base), source)
    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        loaded = load_yaml(text, source)
    if isinstance(loaded, dict) and "config" in loaded:
        return loaded | {"config": load_recipe_file(Path(base), source)}
    return loaded


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
    files = {"recipe": _load_base(study.base), "task_files": _read_task_files(study)}
    record = json.loads(json.dumps(asdict(study) | files, default=str))
    del record["launch"], record["jobs"]  # How the study is run may change.
    before = json.loads(plan.read_text(encoding="utf-8")) if plan.is_file() else None
    if before and (changed := _get_changed_keys(_expand_home(before), record)):
        raise UserError(f"{output} holds another study ({', '.join(changed)} changed): choose another --output")
    contents = _read_tasks(study, jobs)
    left = {job.what for job in jobs if not job.done}
    students = [
        (name, cast(Recipe, recipes[f"distill {name}"])) for name in study.students if f"distill {name}" in left
    ]
    if study.tokens and students:
        from ds_distill.data.run_data import with_prepared_settings  # it imports torch, and a report need not wait

        students = [(name, with_prepared_settings(recipe, Path(study.tokens))) for name, recipe in students]
    _check_teacher(study, students)
    if not all(job.done for job in jobs):
        contents |= teacher_contents(study)
    known = (before or {}).get("contents", {})
    check_contents(study, known, contents, output)
    pending = {job.what for job in jobs if not job.done}
    check_finetunings(study, {name: recipes.get(f"distill {name}") for name in study.students}, pending)
    write_json(plan, record | {"contents": known | contents})
    done, stored = sum(job.done for job in jobs), read_summary(output)
    if done == len(jobs):
        log(f"{output}: finished before ({done} of {done} jobs), nothing to do")
    else:
        log_header(
            {
                "study": f"{counted(len(study.students), 'student')}, {counted(len(study.tasks), 'task')}, "
                f"{counted(study.seeds, 'seed')} each",
                "jobs": f"{len(jobs)}, of which {done} are done; {study.jobs} at a time",
                "output": str(output),
            }
        )
        run_jobs(jobs, study.jobs, output / "logs")
        write_record(output)
    summary = {"output": str(output), "rows": collect_rows(study, output)}
    return stored if stored == summary else summary


def _read_task_files(study: Study) -> dict[str, str]:
    """Return what the YAML files of a user's own tasks hold, by the task's label."""
    return {
        get_label(task): expand_user(task).read_text(encoding="utf-8") for task in study.tasks if is_task_file(task)
    }


def _check_teacher(study: Study, students: list[tuple[str, Recipe]]) -> None:
    """Raise UserError if a student cannot be built from its teacher.

    Without this check the error would come up only after the text has been prepared. `students`
    holds (name, recipe) for each student that does not exist yet.
    """
    if not students:
        return
    with spinner("checking the teacher"):
        # This module imports torch, and a report need not wait for that.
        from ds_distill.models.folder import find_model_folder
        from ds_distill.preflight.models import check_teachers_complete, check_teachers_fit

        recipes = {}
        for name, recipe in students:
            teacher = study.get_teacher(name)
            try:
                check_teachers_fit([find_model_folder(teacher)], recipe, Path(study.tokens) if study.tokens else None)
            except UserError as error:
                raise UserError(f"distill {name}: {error}") from error
            starts = recipe.student.from_, recipe.student.init_layers == "random"
            recipes[teacher, *starts, recipe.compares_logits, recipe.need_vocabulary] = teacher, recipe
        for teacher, recipe in recipes.values():  # those that ask for the same weights need one look
            check_teachers_complete([find_model_folder(teacher)], recipe)


def check_finetunings(study: Study, recipes: Mapping[str, Recipe | None], pending: Set[str]) -> None:
    """Raise UserError for fine-tunings that cannot be.

    That is where finetune.match has a term that a student and its fine-tuned teacher do not have, and where
    finetune.quantize is set for a student with student.linear_rank.

    Args:
        study: The plan.
        recipes: The recipe of each student.
        pending: What the jobs are that are not done yet.
    """
    asked: dict[str, tuple[str, list[Match], bool, str]] = {}
    for task in study.tasks:
        for name, variant in study.finetunings.items():
            settings = study.get_finetune_settings(task, variant)[1]
            match, quantize = settings.get("match"), bool(settings.get("quantize"))
            if (match or quantize) and f"{get_label(task)}, {name}" in pending:
                terms = FinetuneConfig(match=match or []).match
                given = study.find_task_teacher(get_label(task), variant) or study.teacher
                # which several tasks may have in common
                asked[f"{name}: {terms}, {quantize}, {given}"] = (name, terms, quantize, given)
    if not asked:
        return
    # These modules import torch, and a report need not wait for that.
    from ds_distill.compression.fake_quantize import check_quantizable
    from ds_distill.finetune.inner_terms import InnerTerms
    from ds_distill.models.folder import find_model_folder
    from ds_distill.models.low_rank import get_rank
    from ds_distill.models.student_plan import plan_student

    for name, terms, quantize, given in asked.values():
        student = study.finetunings[name].student
        recipe = recipes.get(student)  # none of the teacher
        layer_map, config = (
            plan_student(
                find_model_folder(study.get_teacher(student)).config,
                **asdict(recipe.student),
                dropout=recipe.training.dropout,
            )
            if recipe
            else (None, find_model_folder(study.teacher).config)
        )
        try:
            if terms:
                InnerTerms(terms, config, find_model_folder(given).config, layer_map)
            if quantize:
                check_quantizable(get_rank(config), "finetune.quantize")
        except UserError as error:
            raise UserError(f"{name}: {error}") from error


def _read_tasks(study: Study, jobs: list[Job]) -> dict[str, str]:
    """Return what the files hold of each task that has a job to do."""
    pending = [
        task
        for task in study.tasks
        if any(job.argv[:3] == ("finetune", "--task", task) and not job.done for job in jobs)
    ]
    return {name: digest for task in pending for name, digest in task_contents(study, task).items()}


def _expand_home(plan: dict) -> dict:
    """Return the plan with ~ expanded; earlier plans kept it as it was written."""
    paths = {
        key: value if isinstance(value, list) else [value]
        for key in ("teacher", "data", "corpus", "tokens", "heldout")
        if (value := plan.get(key))
    }
    expanded = {key: [os.path.expanduser(path) for path in value] for key, value in paths.items()}
    return plan | {key: value if isinstance(plan[key], list) else value[0] for key, value in expanded.items()}


def _get_changed_keys(before: dict, now: dict) -> list[str]:
    """Return the keys under which a plan differs from the earlier one.

    Students, tasks with their settings, seeds, task distillations and variants may be added.
    """
    earlier, later = Study.from_dict(before), Study.from_dict(now)
    compatible = {key: set(before[key]) <= set(now[key]) for key in ("tasks", "task_distillation")}
    compatible["students"] = all(now["students"].get(name) == given for name, given in before["students"].items())
    compatible["variants"] = all(_continues(name, earlier, later) for name in earlier.variants)
    # What no variant has read may change.
    compatible["copies"] = compatible["cloze"] = not any(variant.augmented for variant in earlier.variants.values())
    pairs = [(earlier.get_finetune_settings(task), later.get_finetune_settings(task)) for task in earlier.tasks]
    compatible["finetune"] = compatible["seeds"] = all(old == new and few <= many for (few, old), (many, new) in pairs)
    compatible["base"] = True  # The base may move; its content is under `recipe`.
    files = now.get("task_files", {})
    compatible["task_files"] = all(files.get(name, text) == text for name, text in before.get("task_files", {}).items())
    return [key for key in now if before.get(key) != now[key] and not compatible.get(key)]


def _continues(name: str, earlier: Study, later: Study) -> bool:
    """Return whether a later plan has a variant of an earlier one, as it was on the tasks of that plan.

    Where it learns from all of the teacher's seeds, their weights change with their number.
    """
    old, new = earlier.variants[name], later.variants.get(name)
    if new is None or replace(old, finetune={}) != replace(new, finetune={}):
        return False
    for task in earlier.tasks:
        before, now = (study.get_finetune_settings(task, study.variants[name])[1] for study in (earlier, later))
        few, many = (study.get_finetune_settings(task, Variant(TEACHER))[0] for study in (earlier, later))
        if old.teachers == "all" and few < many:
            before, now = ({**settings, "teacher_weights": None} for settings in (before, now))
        if before != now:
            return False
    return True
