"""`finetune`: fine-tunes an encoder on a task, over several seeds and settings."""

from __future__ import annotations

from pathlib import Path

from ds_distill.augment import find_rows
from ds_distill.cli import arguments, push
from ds_distill.config.losses import normalize_weights
from ds_distill.config.values import Name, UserPath
from ds_distill.finetune.config import FinetuneConfig, expand_grid
from ds_distill.models.folder import find_model_folder
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.tables import aligned, table
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.examples import split_files
from ds_distill.tasks.own_task import find_task, is_task_file
from ds_distill.tracking.choice import Tracker, check_installed
from ds_distill.utils.errors import UserError, expand_user

PURPOSE = (
    "fine-tune an encoder on a task of your own, of GLUE, SQuAD or IMDb over several seeds, with or without a "
    "fine-tuned teacher"
)
EXAMPLES = r"""
ds-distill finetune --task rte --model runs/student --data glue/RTE \
    --seeds 5 --output runs/rte
ds-distill finetune --task squad --model runs/student \
    --teacher runs/squad-teacher --grid lr=3e-5,5e-5 epochs=2,3 \
    --output runs/squad
ds-distill finetune --task my_task.yaml --model runs/student \
    --output runs/my_task
"""
COMMON_OPTIONS = (
    "task",
    "model",
    "data",
    "output",
    "seeds",
    "grid",
    "teacher",
    "finetune.learning_rate",
    "finetune.epochs",
    "finetune.batch_size",
    "finetune.max_length",
)


def add_arguments(parser) -> None:
    parser.add_argument(
        "--task",
        type=Name | None,
        default=None,
        help="task: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli, imdb, squad, squad_v2 or ner, or the YAML file "
        "of a task of your own (guide: Use your own task)",
    )
    parser.add_argument(
        "--model", type=UserPath | None, default=None, help="folder, or name on the Hub, of a pretrained encoder"
    )
    parser.add_argument(
        "--teacher",
        type=UserPath,
        nargs="+",
        default=[],
        help="folder of a teacher fine-tuned on the task, for task-specific distillation; or several, whose soft "
        "targets are averaged, see finetune.teacher_weights",
    )
    parser.add_argument(
        "--data",
        type=UserPath | None,
        default=None,
        help="folder with train.* and validation.* or dev.* (jsonl, json, tsv, csv or parquet, also .gz and .zst, or "
        "SQuAD's JSON), with the Hub's columns or in GLUE's layout; loaded from the Hub when not given",
    )
    parser.add_argument(
        "--augmented",
        type=UserPath | None,
        default=None,
        help="folder written by augment, whose texts the teacher labels",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of seeds, starting at --first_seed; reported scores are medians"
    )
    parser.add_argument("--first_seed", type=int, default=0, help="first seed")
    parser.add_argument(
        "--grid",
        type=Name,
        nargs="+",
        default=[],
        help="grid search over all combinations of these settings: lr=2e-5,5e-5 epochs=3,5; in a YAML file a list, "
        "['lr=2e-5,5e-5']",
    )
    parser.add_argument(
        "--report_to",
        type=list[Tracker],
        default=["tensorboard"],
        help="trackers that get the runs' figures while they train; []: none",
    )
    parser.add_argument(
        "--finetune", type=FinetuneConfig, default=FinetuneConfig(), help="training settings of each fine-tuning run"
    )
    push.add_arguments(parser)


def check(options) -> None:
    arguments.require_output(options)
    for key in ("task", "model"):
        if not options[key]:
            raise UserError(f"--{key} is missing (--help describes the expected value)")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds}: must be at least 1")
    if not 0 <= options.first_seed <= options.first_seed + options.seeds - 1 < 2**32:
        raise UserError(f"--first_seed {options.first_seed}: seeds must be between 0 and 2^32 − 1")
    if not is_task_file(options.task):
        get_task(options.task)
    settings = arguments.build_section(options.finetune, FinetuneConfig)
    settings.check()
    if options.augmented and not options.teacher:
        raise UserError(
            f"--augmented {options.augmented}: its texts have no labels; give --teacher with a model that is "
            "fine-tuned on the task"
        )
    for point in expand_grid(settings, options.grid or []):
        if point.augmented_copies and not options.augmented:
            raise UserError(
                f"finetune.augmented_copies = {point.augmented_copies}: --augmented is missing; give a folder that "
                "`ds-distill augment` has written"
            )
        if point.teacher_weights is not None:
            normalize_weights(point.teacher_weights, len(options.teacher), "finetune.teacher_weights")
        if options.teacher:
            point.check_learns(augmented=bool(options.augmented))


def check_paths(options) -> None:
    check_installed(options.report_to, "--report_to")
    find_model_folder(options.model, "--model").check_files()
    for teacher in options.teacher:
        find_model_folder(teacher, "--teacher").check_files()
    if options.augmented:
        find_rows(expand_user(options.augmented))
    task = find_task(options.task, options.data)
    if options.data and not task.own:
        for split in ("train", *task.validation):
            split_files(expand_user(options.data), split)
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.finetune.runs import finetune

    settings = arguments.build_section(options.finetune, FinetuneConfig)
    summary = finetune(
        find_task(options.task, options.data),
        options.model,
        Path(options.output),
        points=expand_grid(settings, options.grid or []),
        seeds=list(range(options.first_seed, options.first_seed + options.seeds)),
        teachers=options.teacher,
        data=options.data,
        augmented=options.augmented,
        report_to=options.report_to,
    )
    rows = [{"seed": str(row["seed"])} | row for row in summary["seeds"]]
    columns = {"seed": "seed"} | {name: name.replace("_", " ") for name in summary["metrics"]}
    rows.append({"seed": "median"} | summary["metrics"])
    if summary.get("constant"):  # tags of words and several labels have none
        rows.append({"seed": "constant answer"} | summary["constant"])
    print(table(rows, columns))
    return summary


def closing(options, summary: dict) -> str:
    export = ["export", "--model", options.output, "--format", "onnx-int8"]
    scored_on = ["--data", options.task] if is_task_file(options.task) else []
    return format_closing(
        aligned([("model", f"{summary['export']}, the one at the median"), ("files", options.output)]),
        commands=[("convert it for deployment", [*export, *scored_on])],
    )
