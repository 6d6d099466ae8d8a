"""The plan of a study: students that differ in some settings, each distilled and then fine-tuned on tasks."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

from ds_distill.config.recipe_file import RECIPES, SHIPPED_ROOT, find_file
from ds_distill.config.renamed import current_name
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.recipe import Recipe
from ds_distill.study.scheduler import make_folder_name, split_launch_command
from ds_distill.study.variants import NEEDS, TASK_DISTILLATION, TEACHER, Variant
from ds_distill.tasks.catalog import TASKS
from ds_distill.tasks.examples import split_files
from ds_distill.tasks.own_task import find_task, get_label, is_task_file
from ds_distill.utils.errors import UserError, did_you_mean, expand_user

SECTION_PREFIXES = tuple(f"{room.name}." for room in fields(Recipe))
SETTINGS = tuple(Recipe().setting_names())
FINETUNE_SETTINGS = tuple(setting.name for setting in fields(FinetuneConfig))
# These are the settings that `prepare` reads.
PREPARE_SETTINGS = (
    "data.mode",
    "data.sequence_length",
    "data.heldout_fraction",
    "data.column",
    "data.drop_duplicates",
    "data.streaming",
    "data.workers",
    "training.seed",
)
# These settings decide a text's tokens. The seed decides which of its documents are held out; there
# the base's seed counts.
TOKEN_SETTINGS = PREPARE_SETTINGS[:5]


@dataclass
class Study:
    """The plan of a study.

    Args:
        base: The recipe that all students start from.
        tasks: The tasks by name, or the YAML files of a user's own; the file's name without its suffix
            stands for such a task.
        students: Maps each name to the dotted settings in which that student differs from `base`, and to the `teacher`
            that it is distilled from if that is another than the study's.
        include_teacher: Whether to fine-tune the teacher as well.
        seeds: How many seeds each fine-tuning has, unless its task has a number of its own.
        task_distillation: The students that are also fine-tuned with the fine-tuned teacher.
        variants: Further fine-tunings by name, each {student, task_distillation, teachers, augmented, finetune}.
        copies: For variants with `augmented: true`, how many copies of each training example `augment` writes.
        cloze: For the same, how many questions about paragraphs of the corpus it writes for SQuAD.
        finetune: The settings of every fine-tuning, by name. A task's own settings, and its own
            number of seeds, go under the task's name.
        launch: The command that starts a distillation, on several processes or hosts. If empty,
            this process's Python starts it.
        jobs: How many jobs run side by side. A distillation that `launch` starts always runs
            alone.
        tokens: A folder of prepared tokens that all students read, instead of the corpus.
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
    variants: dict[str, Variant] = field(default_factory=dict)
    copies: int = 4
    cloze: int = 0
    launch: str = ""
    jobs: int = 1
    tokens: str | None = None

    def __post_init__(self) -> None:
        base = str(find_file(self.base, f"base: {self.base}", RECIPES))
        self.base = f"./{base}" if re.fullmatch(r"[\w-]+", base) else base  # else it would name a shipped file
        self.students, self.finetune = _as_written(self.students), _as_written(self.finetune)
        self.variants = {
            name: replace(variant, finetune=_as_written(variant.finetune)) for name, variant in self.variants.items()
        }

    @classmethod
    def from_dict(cls, plan: dict) -> Study:
        """Return the study that study.json holds; raise UserError where an earlier version wrote it."""
        if old := [key for key in plan if current_name(key)]:
            raise UserError(
                f"study.json was written by an earlier version: {old[0]} is now {current_name(old[0])}; begin the "
                "study again in a new --output"
            )
        variants = {name: Variant(**given) for name, given in plan.get("variants", {}).items()}
        kept = {name: value for name, value in plan.items() if name in cls.__dataclass_fields__}
        return cls(**kept | {"variants": variants})

    @property
    def labels(self) -> list[str]:
        """What stands for each task in folders and tables."""
        return [get_label(task) for task in self.tasks]

    def get_task_data(self, task: str) -> str | None:
        """Return the folder of a task's files; None where they come from the hub, or its YAML file names them."""
        return str(Path(self.data) / task) if self.data and not is_task_file(task) else None

    def get_teacher(self, student: str) -> str:
        """Return the teacher that a student is distilled from."""
        return self.students[student].get(TEACHER, self.teacher)

    @staticmethod
    def find_task_teacher(label: str, variant: Variant) -> str | None:
        """Return the folder of a task's teacher that a variant names; None where it is the study's."""
        return str(variant.teachers_folder / label) if variant.teachers_folder else None

    def has_spans(self, task: str) -> bool:
        """Return whether a task's answers are spans of a context, as SQuAD's are."""
        return find_task(task, self.get_task_data(task)).spans

    @property
    def finetunings(self) -> dict[str, Variant]:
        """All fine-tunings on each task, by the names of the report's rows, in their order."""
        found = {TEACHER: Variant(TEACHER)} if self.include_teacher else {}
        for name in self.students:
            found[name] = Variant(name)
            if name in self.task_distillation:
                found[f"{name}, {TASK_DISTILLATION}"] = Variant(name, task_distillation=True)
        return found | self.variants

    def get_finetune_settings(self, task: str, variant: Variant | None = None) -> tuple[int, dict]:
        """Return how many seeds a task's fine-tunings have, and their settings.

        A variant's own come last. What does not concern it is left out, such as terms with a teacher where there is
        none.
        """
        settings: dict[str, Any] = {"seeds": self.seeds}
        for given in (self.finetune, variant.finetune if variant else {}):
            settings |= {key: value for key, value in given.items() if key not in (*TASKS, *self.labels)}
            settings |= given.get(get_label(task)) or {}
        if variant:
            settings = {key: value for key, value in settings.items() if variant.reads(key)}
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
        places = {"finetune": self.finetune}
        places |= {f"variants: {name}: finetune": variant.finetune for name, variant in self.variants.items()}
        for place, given in places.items():
            for name in (*TASKS, *self.labels):
                if not isinstance(given.get(name) or {}, dict):
                    raise UserError(
                        f"{place}: {name}: {given[name]!r}: must map names of settings to values, such as {{epochs: 3}}"
                    )
        for name in self.tasks:
            data = self.get_task_data(name)
            task = find_task(name, data)
            self._check_settings(name, "finetune", *self.get_finetune_settings(name))
            for which, variant in self.variants.items():
                self._check_settings(
                    name, f"variants: {which}: finetune", *self.get_finetune_settings(name, variant), variant
                )
            if data and not task.own:
                for split in ("train", *task.validation):
                    split_files(expand_user(data), split)
        if duplicates := {name for name in self.labels if self.labels.count(name) > 1}:
            raise UserError(f"tasks: {', '.join(sorted(duplicates))}: given twice; remove one")

    def _check_settings(
        self, task: str, place: str, seeds: Any, settings: dict, variant: Variant | None = None
    ) -> None:
        """Raise UserError for a setting of a task's fine-tunings that does not exist or cannot be."""
        if type(seeds) is not int or seeds < 1:
            raise UserError(f"{place}: seeds of {task} = {seeds!r}: must be a whole number, 1 or more")
        for key in settings:
            if renamed_key := current_name(f"tuning.{key.removeprefix('tuning.')}"):
                if renamed_key.removeprefix("finetune.") not in settings:
                    raise UserError(f"{place}: {key}: is called {renamed_key.removeprefix('finetune.')} now")
            if key not in FINETUNE_SETTINGS:
                raise UserError(
                    f"{place}: {key}: no such setting{did_you_mean(key, FINETUNE_SETTINGS)}; the settings are "
                    f"{', '.join(FINETUNE_SETTINGS)}"
                )
        try:
            config = FinetuneConfig(**settings)
            config.check()
            if variant and variant.task_distillation:
                config.check_learns(augmented=variant.augmented)
        except UserError as error:
            raise UserError(f"{place.removesuffix('finetune')}{error}") from error
        except TypeError as error:
            raise UserError(
                f"{place} of {task}: {settings}: a value that must be a number is not one ({error})"
            ) from None

    def _check_students(self) -> None:
        if not self.students:
            raise UserError("students is empty; name at least one, such as `distilled: {}`")
        for name, changes in self.students.items():
            for key in changes:
                if key == "stages":
                    continue  # `distill` checks them with the rest of the recipe
                if key == TEACHER and isinstance(changes[key], str):
                    continue  # a folder or a name, which is read when the study begins
                if not key.startswith(SECTION_PREFIXES):
                    raise UserError(
                        f"students: {name}: {key}: a student may differ only in dotted settings of the recipe, such as "
                        "losses.kl, in stages, and in its teacher, a folder or a name"
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
        for name, variant in self.variants.items():
            self._check_variant(f"variants: {name}", variant)
        for key, number, least in (("copies", self.copies, 1), ("cloze", self.cloze, 0)):
            if number < least:
                raise UserError(f"{key} = {number}: must be at least {least}")
        for key, names in (("students", self.students), ("variants", self.variants)):
            if not all(name.strip() for name in names):
                raise UserError(f"{key}: one of the names is empty; write a name")

    def _check_variant(self, place: str, variant: Variant) -> None:
        if variant.student not in (TEACHER, *self.students):
            raise UserError(
                f"{place}: student: {variant.student}: not a student of this study; the students are "
                f"{', '.join(self.students)}; {TEACHER} is the teacher"
            )
        folder = variant.teachers_folder
        if variant.task_distillation and not self.include_teacher and not folder:
            raise UserError(f"{place}: task_distillation: needs the fine-tuned teacher; set include_teacher to true")
        if folder and (missing := [task for task in self.labels if not (folder / task / "config.json").is_file()]):
            raise UserError(
                f"{place}: teachers: {folder}: has no model of {missing[0]}; give median, all, or a folder that has a "
                "model for each task under its name"
            )
        others = (f"teachers: {variant.teachers}", variant.teachers != "median")
        for key, given in (others, ("augmented", variant.augmented)):
            if given and not variant.task_distillation:
                raise UserError(f"{place}: {key}: needs a fine-tuned teacher; set task_distillation to true")
        own = [variant.finetune, *(given for given in variant.finetune.values() if isinstance(given, dict))]
        for setting in (key for given in own for key in given):
            if setting in NEEDS and not variant.reads(setting):
                key, value, what = NEEDS[setting]
                raise UserError(f"{place}: finetune: {setting}: needs {what}; set {key} to {str(value).lower()}")
        self._check_counts(place, variant)

    def _check_counts(self, place: str, variant: Variant) -> None:
        """Raise UserError where there are other numbers of teachers or copies than a variant's settings say."""
        for task in self.tasks:
            seeds, _ = self.get_finetune_settings(task, Variant(TEACHER))
            _, settings = self.get_finetune_settings(task, variant)
            weights, copies = settings.get("teacher_weights"), settings.get("augmented_copies") or 0
            if weights is not None and len(weights) != seeds:
                raise UserError(
                    f"{place}: finetune.teacher_weights = {weights}: the teacher has {seeds} seeds on "
                    f"{get_label(task)}; give one number for each"
                )
            if copies > self.copies:
                raise UserError(
                    f"{place}: finetune.augmented_copies = {copies}: there are {self.copies} copies of each example; "
                    "give fewer, or raise copies"
                )

    def _check_folders(self) -> None:
        twice = [f"{student}, {TASK_DISTILLATION}" for student in self.task_distillation]
        names = [TEACHER, *self.students, *twice, *self.variants]
        folders: dict[str, str] = {}
        for number, name in enumerate(names):
            other = folders.setdefault(make_folder_name(name), name)
            if other != name or name in names[:number]:
                raise UserError(
                    f"students and variants: {name!r} and {other!r} would share the folder {make_folder_name(name)}; "
                    "rename one of them"
                )

    def _check_inputs(self) -> None:
        if not Path(self.base).is_file():
            raise UserError(f"base: {self.base}: no such recipe, neither in the current folder nor in {SHIPPED_ROOT}")
        if not self.teacher:
            raise UserError("--teacher is missing; give it on the command line or in the plan")
        asked = any(variant.augmented for variant in self.variants.values())
        cloze = self.cloze if asked and any(map(self.has_spans, self.tasks)) else 0
        if not self.corpus and (cloze or not self.tokens):
            why = f"cloze: {cloze}: the questions are made of its paragraphs; " if self.tokens else ""
            raise UserError(f"--corpus is missing; {why}give it on the command line or in the plan")
        for name, changes in self.students.items() if self.tokens else ():
            if changed := [key for key in TOKEN_SETTINGS if key in changes]:
                raise UserError(
                    f"students: {name}: {changed[0]}: --tokens {self.tokens} was prepared in one way; leave the "
                    "setting out, or give --corpus instead"
                )
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


def _as_written(value: Any) -> Any:
    """Return a setting's value in the form that YAML and JSON have, without dataclasses."""
    if isinstance(value, list):
        return [_as_written(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _as_written(entry) for key, entry in value.items()}
    return asdict(cast(Any, value)) if is_dataclass(value) else value
