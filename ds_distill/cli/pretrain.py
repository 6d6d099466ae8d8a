"""`pretrain`: trains with masked-LM and without a teacher, to make teachers."""

from __future__ import annotations

from pathlib import Path

from ds_distill.cli import arguments, push
from ds_distill.config.values import UserPath
from ds_distill.models.folder import find_model_folder
from ds_distill.reporting.closing import format_closing, sibling, training_result
from ds_distill.utils.errors import UserError

PURPOSE = "train a teacher with masked-LM alone: a new BERT, or an existing encoder, which gets a head if it has none"
EXAMPLES = r"""
ds-distill pretrain --tokenizer bert-base-uncased --corpus text.txt \
    --output runs/teacher
ds-distill pretrain --tokenizer models/teacher --tokens runs/tokens \
    --model.hidden_size 256 --model.num_hidden_layers 6 \
    --training.max_tokens 10M --output runs/teacher
ds-distill pretrain --from models/encoder --corpus text.txt \
    --training.encoder_learning_rate 0 --output runs/teacher
"""
COMMON_OPTIONS = (
    "tokenizer",
    "from",
    "corpus",
    "output",
    "model",
    "training.max_tokens",
    "training.epochs",
    "training.global_batch_size",
    "training.micro_batch_size",
    "training.learning_rate",
    "data.sequence_length",
)
NEW_MODEL = {
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 768,
    "max_position_embeddings": 128,
}


def add_arguments(parser) -> None:
    arguments.add_corpus(parser)
    add_new_model(parser)
    parser.add_argument(
        "--from",
        type=UserPath | None,
        default=None,
        help="folder, or name on the Hub, of an encoder to continue pretraining; a masked-LM head is added if it has "
        "none",
    )
    arguments.add_tokenizer(parser)
    arguments.add_tokens(parser)
    arguments.add_heldout(parser)
    arguments.add_unread_teacher(parser)
    push.add_arguments(parser)
    arguments.add_recipe(parser)


def add_new_model(parser) -> None:
    """Add --model, the sizes of a new BERT."""
    help = "sizes of the new BERT, with the names of transformers' BertConfig"
    parser.add_argument("--model", type=dict[str, int | float], default=NEW_MODEL, help=help)


def check(options) -> None:
    recipe = arguments.check_job(options)
    options.tokenizer = options.tokenizer or options["from"]
    if not options.tokenizer:
        raise UserError("--tokenizer is missing; give the folder of one, or --from with an encoder that has one")
    arguments.check_text_given(options, recipe)


def check_paths(options) -> None:
    arguments.check_text_paths(options)
    if options["from"]:
        find_model_folder(options["from"], "--from").check_files()
    if options.tokenizer != options["from"] and not options.tokens:
        arguments.check_tokenizer_folder(options.tokenizer, "--tokenizer")
    arguments.check_writable(options.output)


def run(options) -> dict:
    from ds_distill import api

    return api.pretrain(
        arguments.build_recipe(options),
        model=options["from"] or dict(options.model),
        tokenizer=options.tokenizer,
        output=options.output,
        corpus=options.corpus,
        tokens=options.tokens,
        heldout=options.heldout,
    ).details


def closing(options, summary: dict) -> str:
    output, tokens = options.output, options.tokens or Path(options.output) / "tokens"
    distill = ["distill", "--teacher", output, "--tokens", tokens, "--output", sibling(output, "student")]
    return format_closing(
        *training_result(summary, output),
        commands=[
            ("distill it into a smaller student", distill),
            ("compare it with random weights", ["evaluate", "--model", output, "--tokens", tokens, "--untrained"]),
        ],
    )
