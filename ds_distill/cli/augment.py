"""`augment`: writes augmented copies of a task's training examples."""

from __future__ import annotations

from pathlib import Path

from ds_distill.augment import FILE
from ds_distill.cli import arguments
from ds_distill.config.values import Name, UserPath
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.tables import aligned, table
from ds_distill.tasks.catalog import get_task
from ds_distill.tasks.examples import split_files
from ds_distill.tasks.own_task import find_task, is_task_file
from ds_distill.utils.errors import UserError, expand_user

PURPOSE = "write more training texts for a task, in words that a masked-LM model proposes, for a teacher to label"
EXAMPLES = r"""
ds-distill augment --task rte --data glue/RTE --model runs/teacher \
    --copies 8 --output runs/augmented/rte
ds-distill augment --task sst2 --model runs/teacher --seed 1 \
    --output runs/augmented/sst2
ds-distill augment --task squad --data squad --model runs/teacher \
    --copies 2 --corpus wikipedia.txt --cloze 20000 \
    --output runs/augmented/squad
"""
COMMON_OPTIONS = ("task", "model", "data", "output", "copies")


def add_arguments(parser) -> None:
    arguments.add_corpus(parser, "text files of whose paragraphs --cloze makes questions")
    parser.add_argument("--task", type=Name | None, default=None, help="task, as for finetune")
    parser.add_argument(
        "--model",
        type=UserPath | None,
        default=None,
        help="folder, or name on the Hub, of a masked-LM model that proposes words, such as the teacher before it was "
        "fine-tuned",
    )
    parser.add_argument(
        "--data",
        type=UserPath | None,
        default=None,
        help="folder of the task's files, as for finetune; loaded from the Hub when not given",
    )
    parser.add_argument("--copies", type=int, default=4, help="number of copies of each training example")
    parser.add_argument("--cloze", type=int, default=0, help="number of questions made of --corpus, for SQuAD")
    parser.add_argument("--seed", type=int, default=0, help="seed")


def check(options) -> None:
    arguments.require_output(options)
    for key in ("task", "model"):
        if not options[key]:
            raise UserError(f"--{key} is missing (--help describes the expected value)")
    for key, least in (("copies", 0), ("cloze", 0), ("seed", 0)):
        if options[key] < least:
            raise UserError(f"--{key} {options[key]}: must be at least {least}")
    spans = not is_task_file(options.task) and get_task(options.task).spans
    if options.copies == options.cloze == 0:
        raise UserError("--copies 0 and --cloze 0: nothing would be written; give one of them")
    if options.cloze and not spans:
        raise UserError(f"--cloze {options.cloze}: {options.task} asks no questions about paragraphs; leave it out")
    if options.cloze and not options.corpus:
        raise UserError(f"--cloze {options.cloze}: --corpus is missing; give text files whose lines are paragraphs")
    if options.corpus and not options.cloze:
        raise UserError("--corpus: is read for --cloze alone; give the number of questions with --cloze")


def check_paths(options) -> None:
    find_model_folder(options.model, "--model").check_files()
    task = find_task(options.task, options.data)
    if options.data and not task.own:
        for split in ("train", *task.validation):
            split_files(expand_user(options.data), split)
    if options.corpus:
        check_inputs(options.corpus)
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.jobs.augment import augment

    summary = augment(
        find_task(options.task, options.data),
        options.model,
        Path(options.output),
        data=options.data,
        copies=options.copies,
        seed=options.seed,
        corpus=options.corpus,
        cloze=options.cloze,
    )
    print(
        table(
            [{"how": how, "rows": f"{rows:,}"} for how, rows in summary["how"].items()], {"how": "how", "rows": "rows"}
        )
    )
    return summary


def closing(options, summary: dict) -> str:
    return format_closing(aligned([("rows", str(Path(options.output) / FILE))]))
