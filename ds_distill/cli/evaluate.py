"""`evaluate`: measures held-out masked-LM loss and accuracy of Hugging Face folders."""

from __future__ import annotations

from pathlib import Path

from ds_distill.api import EVALUATION
from ds_distill.cli import arguments
from ds_distill.config.values import UserPath
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.reporting.closing import format_closing
from ds_distill.reporting.heldout import POSITIONS, errors_shown
from ds_distill.reporting.tables import aligned, table
from ds_distill.utils.console import is_first
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_summary

PURPOSE = "measure masked-LM loss and accuracy of Hugging Face folders on held-out text, best first"
EXAMPLES = r"""
ds-distill evaluate --model runs/student bert-base-uncased \
    --corpus text.txt
ds-distill evaluate --model runs/student models/teacher \
    --tokens runs/student/tokens --untrained
ds-distill evaluate --model runs/student \
    --corpus hf:Salesforce/wikitext:wikitext-2-raw-v1@test \
    --output runs/evaluated
"""
COMMON_OPTIONS = (
    "model",
    "corpus",
    "tokens",
    "output",
    "untrained",
    "training.eval_max_sequences",
)

COLUMNS = {"model": "model", "parameters": "parameters"} | {
    f"heldout_{kind}_{figure}": f"{heading} {positions}"
    for kind, positions in POSITIONS.items()
    for figure, heading in {"loss": "loss (nats)", "accuracy": "accuracy"}.items()
}


def add_arguments(parser) -> None:
    arguments.add_corpus(parser)
    arguments.add_tokens(parser)
    arguments.add_unread_heldout(parser)
    arguments.add_unread_teacher(parser)
    parser.add_argument(
        "--model", type=UserPath, nargs="+", default=[], help="folders, or names on the Hub, to evaluate"
    )
    parser.add_argument(
        "--untrained", action="store_true", help="also evaluate the first model's architecture with random weights"
    )
    arguments.add_recipe(parser)


def check(options) -> None:
    arguments.check_recipe(options)
    if not options.model:
        raise UserError("--model is missing; give one or more Hugging Face folders")
    if not options.tokens and not options.corpus:
        raise UserError("--corpus is missing; give text files, or --tokens with a folder written by prepare")
    arguments.check_one_text(options)


def check_paths(options) -> None:
    if options.tokens:
        TokenDataset.open(options.tokens, "train")
    else:
        check_inputs(options.corpus)
    for model in options.model:
        find_model_folder(model, "--model").check_files()
    arguments.check_no_run(options.output or EVALUATION)


def run(options) -> dict:
    from ds_distill import api

    evaluations = api.evaluate(
        options.model,
        recipe=arguments.build_recipe(options),
        corpus=options.corpus,
        tokens=options.tokens,
        output=options.output,
        untrained=options.untrained,
    )
    rows = [evaluation.details for evaluation in evaluations]
    if is_first():
        print(table([errors_shown(row) for row in rows], COLUMNS))
        print(f"± is a standard error over sequences; {rows[0]['heldout_mask_count']:,} positions show [MASK].")
    summary = rows[0] if len(rows) == 1 else {"models": rows}
    if is_first() and not options.output:
        write_summary(summary, Path(EVALUATION))
    return summary


def closing(options, summary: dict) -> str:
    best = summary["models"][0]["model"] if "models" in summary else summary["model"]
    commands = [("convert the best for deployment", ["export", "--model", best, "--format", "onnx-int8"])]
    return format_closing(
        aligned([("files", str(Path(options.output or EVALUATION) / "summary.json"))]),
        commands=commands if Path(best).is_dir() else [],
    )
