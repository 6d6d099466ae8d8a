"""`distill`: trains a student of a teacher."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments, push
from ds_distill.reporting.closing import format_closing, sibling, training_result
from ds_distill.utils.errors import UserError

PURPOSE = "distill a teacher into a smaller student"
EXAMPLES = r"""
ds-distill distill --teacher bert-base-uncased --corpus text.txt \
    --output runs/student
ds-distill distill --teacher models/teacher --tokens runs/tokens \
    --student.num_layers 3 --training.max_tokens 10M --output runs/small
ds-distill distill --config few_tokens --teacher models/teacher \
    --corpus text.txt --output runs/student
"""
COMMON_OPTIONS = (
    "teacher",
    "corpus",
    "output",
    "training.max_tokens",
    "training.epochs",
    "training.global_batch_size",
    "training.micro_batch_size",
    "training.learning_rate",
    "student.num_layers",
    "data.sequence_length",
)


def add_arguments(parser) -> None:
    arguments.add_teacher(parser)
    arguments.add_corpus(parser)
    arguments.add_tokens(parser)
    arguments.add_heldout(parser)
    push.add_arguments(parser)
    arguments.add_recipe(parser)


def check(options) -> None:
    recipe = arguments.check_job(options)
    if not options.teacher:
        raise UserError("--teacher is missing; give the folder or cached name of a masked-LM model")
    recipe.losses.weights_of_teachers(len(options.teacher))
    arguments.check_text_given(options, recipe)


def check_paths(options) -> None:
    arguments.check_text_paths(options)
    arguments.check_teacher_paths(options)
    arguments.check_start_path(options)
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill import api

    recipe = arguments.build_recipe(options)
    return api.distill(
        recipe,
        teacher=options.teacher,
        output=options.output,
        corpus=options.corpus,
        tokens=options.tokens,
        heldout=options.heldout,
        choose_losses=arguments.leaves_losses_open(options, recipe),
    ).details


def closing(options, summary: dict) -> str:
    output, tokens = options.output, options.tokens or Path(options.output) / "tokens"
    compare = ["evaluate", "--model", output, *options.teacher, "--tokens", tokens]
    tune = ["finetune", "--task", "sst2", "--model", output, "--output", sibling(output, "sst2")]
    guesses = "heldout_mask_count" in summary  # those of a student, and of its teacher, with masked-LM heads
    both = guesses and ("teacher_parameters" not in summary or "teacher_heldout_mask_count" in summary)
    return format_closing(
        *training_result(summary, output),
        commands=[
            *([("compare the student with its teacher", compare)] if both else []),
            ("fine-tune it on SST-2 of the Hub; --data DIR takes files of your own", tune),
            ("convert it for deployment", ["export", "--model", output, "--format", "onnx-int8"]),
        ],
    )
