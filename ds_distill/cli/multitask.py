"""`multitask`: tunes a masked-LM teacher on several tasks at once."""

from __future__ import annotations

import math
from pathlib import Path

from ds_distill.cli import arguments, push
from ds_distill.config.values import Name, UserPath
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.sources import check_inputs
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.models.folder import find_model_folder
from ds_distill.multitask.settings import DEFAULTS, check_settings
from ds_distill.reporting.closing import format_closing, sibling
from ds_distill.reporting.heldout import heldout_cells
from ds_distill.reporting.tables import aligned, table
from ds_distill.tasks.catalog import MASKED_LM, Task, get_task
from ds_distill.tasks.examples import split_files
from ds_distill.tasks.own_task import find_task, is_task_file
from ds_distill.tracking.choice import Tracker, check_installed
from ds_distill.utils.errors import UserError, expand_user

PURPOSE = "tune a masked-LM teacher on several tasks at once; it keeps its head, so that distill takes it as a teacher"
EXAMPLES = r"""
ds-distill multitask --model models/teacher --tasks rte sst2 squad \
    --corpus text.txt --output runs/tuned
ds-distill multitask --model models/teacher --tasks rte stsb \
    --data glue --tokens runs/tokens --mlm_fraction 0.25 \
    --output runs/tuned
ds-distill multitask --model bert-base-uncased --tasks mnli qnli squad \
    --finetune.max_train_samples 20000 --corpus text.txt \
    --output runs/tuned
"""
COMMON_OPTIONS = (
    "model",
    "tasks",
    "data",
    "corpus",
    "tokens",
    "output",
    "mlm_fraction",
    "finetune.learning_rate",
    "finetune.epochs",
    "finetune.batch_size",
    "finetune.max_length",
)
_PREFIXES = {"before": "teacher_heldout_", "after": "heldout_"}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--model", type=UserPath | None, default=None, help="folder, or name on the Hub, of the masked-LM teacher"
    )
    parser.add_argument(
        "--tasks",
        "--tasks+",
        type=Name,
        nargs="+",
        default=[],
        help="tasks as for finetune: rte sst2 …, and YAML files of your own",
    )
    parser.add_argument(
        "--data",
        type=UserPath | None,
        default=None,
        help="folder with one subfolder per task, each as for finetune; loaded from the Hub when not given",
    )
    arguments.add_corpus(
        parser,
        "text as for distill; masked LM is measured before and after on a part of it that is held out, and trained on "
        "the rest with --mlm_fraction",
    )
    arguments.add_tokens(parser)
    parser.add_argument(
        "--mlm_fraction",
        type=float,
        default=0.0,
        help="share of the steps that train masked LM on the text, to keep the encoder from drifting away from "
        "masked LM",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the heads, the order and dropout")
    parser.add_argument(
        "--report_to",
        type=list[Tracker],
        default=["tensorboard"],
        help="trackers that get the run's figures while it trains; []: none",
    )
    parser.add_argument(
        "--finetune",
        type=FinetuneConfig,
        default=DEFAULTS,
        help="training settings; those of a distillation are not read. The defaults of learning_rate and epochs are "
        f"{DEFAULTS.learning_rate:g} and {DEFAULTS.epochs:g} here",
    )
    push.add_arguments(parser)


def _settings(options) -> FinetuneConfig:
    return DEFAULTS if options.finetune is None else arguments.build_section(options.finetune, FinetuneConfig)


def check(options) -> None:
    arguments.require_output(options)
    if not options.model:
        raise UserError("--model is missing; give the folder of the masked-LM teacher to tune")
    check_settings(_settings(options), options.tasks, options.mlm_fraction, options.seed)
    for task in options.tasks:
        if not is_task_file(task):
            get_task(task, "--tasks")
    if not options.tokens and not options.corpus:
        raise UserError(
            "--corpus is missing; give text on which masked LM is measured before and after, such as that of the "
            "distillation to come, or --tokens with a folder written by prepare"
        )
    arguments.check_one_text(options)


def check_paths(options) -> None:
    check_installed(options.report_to, "--report_to")
    find_model_folder(options.model, "--model").check_files()
    if options.tokens:
        TokenDataset.open(options.tokens, "train")
    else:
        check_inputs(options.corpus)
    for task in _find_tasks(options):
        if options.data and not task.own and not task.tokens:
            for split in ("train", *task.validation):
                split_files(expand_user(options.data) / task.name, split)
    arguments.check_writable(options.output)


def _find_tasks(options) -> list[Task]:
    """Return the tasks; UserError where two have one name, or one has that of masked LM."""
    found: dict[str, Task] = {}
    for given in options.tasks:
        own = is_task_file(given)
        task = find_task(given, None if own or not options.data else str(Path(options.data) / given))
        if task.name in found or task.name == MASKED_LM:
            raise UserError(f"--tasks {given}: another task is called {task.name}; give it another `name` in its file")
        found[task.name] = task
    return list(found.values())


def run(options) -> dict:
    from ds_distill.jobs.multitask import multitask

    summary = multitask(
        _find_tasks(options),
        options.model,
        Path(options.output),
        settings=_settings(options),
        seed=options.seed,
        mlm_fraction=options.mlm_fraction,
        data=options.data,
        corpus=options.corpus,
        tokens=options.tokens,
        report_to=options.report_to,
    )
    columns = {"task": "task", "metric": "metric", "score": "on the dev set", "least": "constant answer"}
    rows = [
        {"task": name, "score": task[task["metric"]], "least": task.get("constant", {}).get(task["metric"])} | task
        for name, task in summary["tasks"].items()
    ]
    print(table(rows, columns | {"steps": "steps"}))
    cells = {name: heldout_cells(summary, prefix) for name, prefix in _PREFIXES.items()}
    heldout = [{"masked LM": name, "loss": loss, "accuracy": accuracy} for name, (loss, accuracy) in cells.items()]
    print("\n" + table(heldout, {"masked LM": "held-out masked LM", "loss": "loss (nats)", "accuracy": "accuracy"}))
    return summary


def closing(options, summary: dict) -> str:
    output, tokens = options.output, options.tokens or Path(options.output) / "tokens"
    distill = ["distill", "--teacher", output, "--tokens", tokens, "--output", sibling(output, "student")]
    remark, note = "distill it into a smaller student", ""
    if _has_drifted(summary):
        distill[1:1] = ["--config", "inner_layers"]
        remark += ", by its inner layers alone"
        note = (
            "Masked LM has become worse: a student that learns by kl would learn that too. Match inner layers\n"
            "instead, or tune again with --mlm_fraction 0.25."
        )
    return format_closing(
        note,
        aligned([("teacher", summary["export"]), ("models of the tasks", str(Path(output) / "tasks"))]),
        commands=[(remark, distill)],
    )


def _has_drifted(summary: dict) -> bool:
    """Return whether the masked-LM loss at [MASK] has risen by more than two standard errors."""
    before, after = (summary.get(f"{prefix}mask_loss") for prefix in _PREFIXES.values())
    errors = [summary.get(f"{prefix}mask_loss_se") or 0.0 for prefix in _PREFIXES.values()]
    # nothing at [MASK] may have been held out
    return before is not None and after is not None and after - before > 2 * math.hypot(*errors)
