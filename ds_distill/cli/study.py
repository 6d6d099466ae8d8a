"""`study`: runs a plan of students and tasks; each student is distilled and then fine-tuned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from ds_distill.cli import arguments
from ds_distill.config.recipe_file import setting_name
from ds_distill.config.values import Name, UserPath, convert, mapping_reader
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.recipe import Stage
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.tables import aligned
from ds_distill.study.plan import Study
from ds_distill.study.variants import FINETUNE, ONE_TASK, Variant
from ds_distill.tasks.own_task import get_label, is_task_file

PURPOSE = "distill and fine-tune every student of a plan on every task, resuming where an earlier start stopped"
EXAMPLES = r"""
ds-distill study --config ablation --teacher models/teacher \
    --corpus text.txt --output runs/study
ds-distill study --teacher models/teacher --corpus text.txt \
    --tasks sst2 rte --seeds 1 --output runs/study
ds-distill study --config study.yaml --jobs 2 --output runs/study
"""
COMMON_OPTIONS = (
    "teacher",
    "corpus",
    "tasks",
    "output",
    "base",
    "students",
    "seeds",
    "data",
    "jobs",
    "launch",
)
# These are the settings that a study's student may change.
STUDENT_SETTINGS = {
    f"{name}.{setting_name(key)}": hint
    for name, section in arguments.SECTIONS.items()
    for key, hint in get_type_hints(section, include_extras=True).items()
} | {"stages": list[Stage]}
STUDENT = Annotated[dict[str, Any], mapping_reader(STUDENT_SETTINGS, "settings")]


def add_arguments(parser) -> None:
    parser.add_argument(
        "--base",
        type=UserPath,
        default="ds_configs/small_real.yaml",
        help="recipe of every student; a file, or the name of a shipped recipe, such as few_tokens",
    )
    parser.add_argument(
        "--students",
        type=dict[str, STUDENT],
        default={"distilled": {}},
        help="students by name, each with the settings that differ from --base",
    )
    parser.add_argument("--teacher", type=UserPath | None, default=None, help="folder of a masked-LM teacher")
    parser.add_argument("--corpus", type=UserPath, nargs="+", default=[], help=arguments.INPUTS)
    arguments.add_tokens(parser)
    parser.add_argument("--heldout", type=UserPath, nargs="+", default=[], help="additional held-out texts")
    parser.add_argument(
        "--data",
        type=UserPath | None,
        default=None,
        help="folder with one subfolder per task, each as for finetune; loaded from the Hub when not given",
    )
    parser.add_argument(
        "--tasks",
        "--tasks+",
        type=Name,
        nargs="+",
        default=["rte"],
        help="tasks as for finetune, by name or as YAML files: rte sst2 my_task.yaml",
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds per fine-tuning")
    parser.add_argument("--include_teacher", type=bool, default=True, help="fine-tune the teacher as well")
    parser.add_argument(
        "--task_distillation",
        "--task_distillation+",
        type=Name,
        nargs="+",
        default=[],
        help="names of students that are also fine-tuned with distillation from the fine-tuned teacher",
    )
    parser.add_argument(
        "--variants",
        type=dict[str, Variant],
        default={},
        help="further fine-tunings of a student by name, each {student, task_distillation, teachers, augmented, "
        "finetune}",
    )
    parser.add_argument(
        "--copies",
        type=int,
        default=4,
        help="number of copies of each training example that variants with augmented: true read",
    )
    parser.add_argument(
        "--cloze", type=int, default=0, help="number of questions made of --corpus that they read as well, for SQuAD"
    )
    parser.add_argument(
        "--finetune",
        type=FINETUNE,
        default={},
        help="fine-tuning settings for all tasks; settings of one task, including seeds, under its name",
    )
    parser.add_argument(
        "--launch",
        type=str,
        default="",
        help="command that starts each distillation, such as './launch.sh' or 'deepspeed --hostfile HOSTS launch.sh'",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="number of jobs to run in parallel; each gets its share of the cores, or a GPU, assigned in turn where "
        "there are fewer; a job that --launch starts runs alone",
    )


def check(options) -> None:
    arguments.require_output(options)


def check_paths(options) -> None:
    for inputs in (options.corpus, options.heldout):
        if inputs:
            check_inputs(inputs)
    if options.tokens:
        TokenDataset.open(options.tokens, "train")
    if options.teacher:
        find_model_folder(options.teacher).check_files()
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.cli.parser import check_command
    from ds_distill.study.run import run_study

    return run_study(make_study(options), Path(options.output), check_command)


def make_study(options) -> Study:
    """Return the plan, with values of their types also under the names of a user's own tasks."""
    own = {get_label(task) for task in options.tasks if is_task_file(task)}

    def read(settings: dict[str, Any], key: str) -> dict[str, Any]:
        return settings | {name: convert(settings[name], ONE_TASK, f"{key}.{name}") for name in own & set(settings)}

    variants = {
        name: replace(variant, finetune=read(variant.finetune, f"variants.{name}.finetune"))
        for name, variant in options.variants.items()
    }
    plan = {name: options[name] for name in Study.__dataclass_fields__}
    return Study(**plan | {"finetune": read(options.finetune, "finetune"), "variants": variants})


def closing(options, summary: dict) -> str:
    return format_closing(
        aligned([("files", str(Path(options.output) / "summary.json"))]),
        commands=[("see it on one page", ["report", options.output])],
    )
