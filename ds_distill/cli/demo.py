"""`demo`: a student distilled from the teacher that comes with the project, compared with one trained without it."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments
from ds_distill.cli.pretrain import NEW_MODEL
from ds_distill.config.recipe_file import SHIPPED_ROOT
from ds_distill.data.sources import check_inputs
from ds_distill.utils.errors import UserError

PURPOSE = (
    "distill the small teacher that comes with the project on text of this machine, train the same student without "
    "it, and compare them"
)
EXAMPLES = r"""
ds-distill demo
ds-distill demo --corpus notes.txt --output runs/notes
ds-distill demo --from-scratch --output runs/scratch
"""
COMMON_OPTIONS = (
    "corpus",
    "output",
    "fresh",
    "from_scratch",
    "corpus_megabytes",
    "training.max_tokens",
)
DEFAULT_OUTPUT = "runs/demo"
RECIPES = SHIPPED_ROOT / "ds_configs"
FROM_SCRATCH = ("--from-scratch", "--from_scratch")
FROM_SCRATCH_DEFAULTS = {"model": NEW_MODEL, "vocabulary": 8192, "teacher_tokens": 1_000_000}
LIMITS = (("vocabulary", 32, 1_000_000), ("corpus_megabytes", 0.001, 1e6), ("teacher_tokens", 1, 10**15))


def add_arguments(parser) -> None:
    arguments.add_corpus(parser, "as for prepare; by default, the documentation of this machine's Python packages")
    add_demo(parser)
    arguments.add_recipe(parser)


def add_demo(parser) -> None:
    """Add the options that only the demo has."""
    parser.add_argument(
        "--fresh", action="store_true", help="demo only: start over instead of resuming from the output folder"
    )
    parser.add_argument(
        "--corpus_megabytes",
        type=float,
        default=8.0,
        help="demo only: megabytes of this machine's documentation to read",
    )
    parser.add_argument(
        *FROM_SCRATCH, action="store_true", help="demo only: first train a tokenizer and a teacher on the same text"
    )
    remark = "with --from-scratch only"
    parser.add_argument(
        "--vocabulary", type=int | None, default=None, help=f"{remark}: vocabulary size of the tokenizer (default 8192)"
    )
    parser.add_argument(
        "--teacher_tokens",
        type=int | None,
        default=None,
        help=f"{remark}: tokens to pretrain the teacher on (default 1000000)",
    )
    parser.add_argument(
        "--model",
        type=dict[str, int | float],
        default={},
        help=f"{remark}: sizes of the teacher, with the names of transformers' BertConfig",
    )


def default_config(words: list[str]) -> Path:
    """Return the recipe of the demo that these words of a command line ask for."""
    from_scratch = any(word in FROM_SCRATCH for word in words)
    return RECIPES / ("demo_from_scratch.yaml" if from_scratch else "demo.yaml")


def check(options) -> None:
    recipe = arguments.check_job(options)
    if not recipe.losses.mlm:
        raise UserError(
            "losses.mlm = 0: the demo also trains its student without the teacher, by the masked-LM loss alone, and "
            "compares predictions at [MASK]; set it above 0, or use distill"
        )
    if not recipe.need_vocabulary:
        where = "stages" if recipe.data.clean_fraction < 1 else f"data.clean_fraction = {recipe.data.clean_fraction:g}"
        raise UserError(
            f"{where}: the demo compares predictions at [MASK], for which its students need masked sequences with "
            "losses.kl or losses.mlm in one stage at least; change that, or use distill"
        )
    if options.from_scratch and recipe.training.micro_batch_size == "auto":
        raise UserError(
            "training.micro_batch_size = auto: not with --from-scratch, which also trains a teacher; give a number"
        )
    check_demo(options)


def check_demo(options) -> None:
    """Raise UserError where the demo's own options are wrong."""
    for key, default in FROM_SCRATCH_DEFAULTS.items():
        given = options[key] not in (None, {})
        if given and not options.from_scratch:
            raise UserError(f"--{key}: applies only with --from-scratch; the demo's own teacher is already trained")
        if options.from_scratch and not given:
            options[key] = default
    for key, least, most in LIMITS:
        if options[key] is not None and not least <= options[key] <= most:
            raise UserError(f"--{key} {options[key]:g}: must be between {least:g} and {most:g}")


def check_paths(options) -> None:
    if options.corpus:
        check_inputs(options.corpus)
    arguments.check_start_path(options)
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill.demo.run import FromScratch
    from ds_distill.demo.run import run as run_demo
    from ds_distill.preflight.checks import check_new_model

    recipe = arguments.build_recipe(options)
    from_scratch = None
    if options.from_scratch:
        check_new_model(dict(options.model), recipe)
        from_scratch = FromScratch(dict(options.model), options.vocabulary, options.teacher_tokens)
    return run_demo(
        recipe,
        Path(options.output),
        corpus=options.corpus,
        megabytes=options.corpus_megabytes,
        from_scratch=from_scratch,
        fresh=options.fresh,
    )


def closing(options, summary: dict) -> str:
    return ""  # the demo shows its result in files and pipes too
