"""`trim`: gives a model and its tokenizer the vocabulary of a text."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.sources import check_inputs
from ds_distill.models.folder import find_model_folder
from ds_distill.reporting.closing import format_closing, sibling
from ds_distill.reporting.tables import aligned, table
from ds_distill.utils.errors import UserError

PURPOSE = "give a model and its tokenizer a smaller vocabulary, of the tokens that a text of your languages uses"
EXAMPLES = r"""
ds-distill trim --model models/xlm-roberta-base --corpus german.txt \
    --output runs/german
ds-distill trim --model models/teacher --corpus text.txt --min_count 5 \
    --output runs/trimmed
ds-distill trim --model models/teacher --tokens runs/tokens \
    --output runs/trimmed
"""
COMMON_OPTIONS = ("model", "corpus", "tokens", "min_count", "output")


def add_arguments(parser) -> None:
    arguments.add_model(parser)
    arguments.add_corpus(parser, "text of the languages or the domain that the model is for, as for distill")
    arguments.add_tokens(parser)
    parser.add_argument(
        "--min_count",
        type=int,
        default=1,
        help="how often a token must occur in the text to be kept; with 1, the text is split as before",
    )


def check(options) -> None:
    arguments.require_output(options)
    if not options.model:
        raise UserError("--model is missing; give the folder of the model whose vocabulary is to be trimmed")
    if not options.corpus and not options.tokens:
        raise UserError("--corpus is missing; give text of the languages that the model is for, or --tokens")
    arguments.check_one_text(options)
    if options.min_count < 1:
        raise UserError(f"--min_count {options.min_count}: must be at least 1")


def check_paths(options) -> None:
    find_model_folder(options.model, "--model").check_files()
    if options.tokens:
        TokenDataset.open(options.tokens, "train")
    else:
        check_inputs(options.corpus)
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.jobs.trim import trim

    summary = trim(
        options.model,
        Path(options.output),
        corpus=options.corpus,
        tokens=options.tokens,
        min_count=options.min_count,
    )
    rows = [
        {"model": name, "tokens": f"{summary[f'tokens{key}']:,}", "size": f"{summary[f'parameters{key}'] / 1e6:.1f}"}
        for name, key in (("before", "_before"), ("after", ""))
    ]
    print(table(rows, {"model": "model", "tokens": "tokens in its vocabulary", "size": "parameters (M)"}))
    lost = summary["text_tokens_dropped"] / summary["text_tokens"]
    if lost:
        print(f"\n{100 * lost:.2g} % of the text's tokens are split into others now.")
    return summary


def closing(options, summary: dict) -> str:
    distill = ["distill", "--teacher", summary["export"], "--corpus", "FILE…"]
    return format_closing(
        aligned([("model", summary["export"])]),
        commands=[("distill it into a smaller student", [*distill, "--output", sibling(options.output, "student")])],
    )
