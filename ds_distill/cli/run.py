"""`run`: the command that `./launch.sh` starts.

With a teacher it distills as `distill` does; without one it is the demo.
"""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments, distill, pretrain, push
from ds_distill.config.values import UserPath
from ds_distill.utils.errors import UserError

PURPOSE = (
    "run the demo, as ./launch.sh does: train a tokenizer, a teacher, a student and a baseline on text of this "
    "machine, and compare them; with --teacher, the same as distill"
)
EXAMPLES = r"""
ds-distill run
ds-distill run --corpus notes.txt --output runs/notes
ds-distill run --teacher bert-base-uncased --corpus text.txt \
    --output runs/student
"""
COMMON_OPTIONS = (
    "corpus",
    "output",
    "fresh",
    "teacher",
    "teacher_tokens",
    "training.max_tokens",
)
DEFAULT_OUTPUT = "runs/demo"
LIMITS = (("vocabulary", 32, 1_000_000), ("corpus_megabytes", 0.001, 1e6), ("teacher_tokens", 1, 10**15))


def add_arguments(parser) -> None:
    arguments.add_teacher(parser)
    parser.add_argument(
        "--corpus", type=UserPath, nargs="*", default=[], help="as for prepare; by default, texts found on this machine"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="demo only: start over instead of resuming from the output folder"
    )
    parser.add_argument(
        "--corpus_megabytes",
        type=float,
        default=6.0,
        help="demo only: megabytes of this machine's documentation to read",
    )
    parser.add_argument(
        "--vocabulary", type=int, default=8192, help="demo only: vocabulary size of the tokenizer trained on the text"
    )
    parser.add_argument(
        "--teacher_tokens", type=int, default=1_000_000, help="demo only: tokens to pretrain the small teacher on"
    )
    pretrain.add_new_model(parser)
    arguments.add_tokens(parser)
    arguments.add_heldout(parser)
    push.add_arguments(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    recipe = arguments.check_job(options)
    if not options.teacher:
        for key, least, most in LIMITS:
            if not least <= options[key] <= most:
                raise UserError(f"--{key} {options[key]:g}: must be between {least:g} and {most:g}")
        if options.heldout or options.tokens:
            raise UserError(
                "--teacher is missing: --heldout and --tokens need a teacher; without one, run is the demo, which "
                "prepares its own text"
            )
        if options.push_to_hub:
            raise UserError("--push_to_hub: applies only with --teacher; the demo's models are not worth uploading")
        return
    if options.fresh:
        raise UserError(
            "--fresh: applies only to the demo, without --teacher; choose another --output, or remove the folder"
        )
    arguments.check_text_given(options, recipe)


check_paths = distill.check_paths


def run(options) -> dict:
    if options.teacher:
        return distill.run(options)
    from ds_distill import demo
    from ds_distill.preflight.checks import check_new_model

    recipe = arguments.build_recipe(options)
    check_new_model(dict(options.model), recipe)
    return demo.run(
        recipe,
        dict(options.model),
        Path(options.output),
        corpus=options.corpus,
        megabytes=options.corpus_megabytes,
        vocabulary=options.vocabulary,
        teacher_tokens=options.teacher_tokens,
        fresh=options.fresh,
    )


def closing(options, summary: dict) -> str:
    return distill.closing(options, summary) if options.teacher else ""
