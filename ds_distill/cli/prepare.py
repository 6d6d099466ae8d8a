"""`prepare`: turns text into tokens on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ds_distill.cli import arguments
from ds_distill.cli.pretrain import NEW_MODEL
from ds_distill.config.values import Name, UserPath
from ds_distill.data.parts import Part, describe_part
from ds_distill.data.sources import check_inputs
from ds_distill.data.token_files import open_manifest, read_manifest
from ds_distill.reporting.closing import format_closing, sibling
from ds_distill.reporting.tables import aligned
from ds_distill.utils.console import log, log_header
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import PartSummary, StoredSummary, read_summary

PURPOSE = "tokenize text once, for later commands"
EXAMPLES = r"""
ds-distill prepare --tokenizer bert-base-uncased --corpus text.txt \
    --output runs/tokens
ds-distill prepare --teacher models/teacher --corpus books/ \
    news.jsonl#body --data.sequence_length 512 --output runs/tokens
ds-distill prepare --teacher models/teacher \
    --corpus hf:Salesforce/wikitext:wikitext-2-raw-v1@train \
    --output runs/tokens
"""
COMMON_OPTIONS = (
    "tokenizer",
    "teacher",
    "corpus",
    "output",
    "data.mode",
    "data.sequence_length",
    "data.heldout_fraction",
    "data.drop_duplicates",
    "data.column",
    "data.workers",
    "part",
    "assemble",
    "executor",
)
SPLITS = {"train": "training", "heldout": "held out"}
NEW_POSITIONS = NEW_MODEL["max_position_embeddings"]
REPORTED = (
    "mode",
    "blocks",
    "real_tokens",
    "documents",
    "found",
    "characters",
    "remarks",
    "unknown_share",
    "sources",
    "fingerprint",
)


def add_arguments(parser) -> None:
    arguments.add_teacher(parser, "; its tokenizer is used when --tokenizer is not given")
    arguments.add_corpus(parser)
    arguments.add_tokenizer(parser)
    parser.add_argument(
        "--convert",
        type=UserPath | None,
        default=None,
        help="folder that an earlier version prepared, to convert to today's files instead of preparing a corpus",
    )
    arguments.add_unread_heldout(parser)
    arguments.add_recipe(parser)
    parser.add_argument(
        "--part",
        type=Name | None,
        default=None,
        metavar="I/N",
        help="prepare one of N parts of the corpus only; any number of hosts that see --output can prepare parts at "
        "once, and --assemble ends the work",
    )
    parser.add_argument(
        "--assemble", action="store_true", help="combine the parts, once all of them are prepared with --part"
    )
    parser.add_argument(
        "--executor",
        type=Literal["local", "slurm", "ray"] | None,
        default=None,
        help="have the parts prepared and assembled by an engine, through datatrove's executor for it: this machine, "
        "Slurm or Ray",
    )
    parser.add_argument(
        "--parts", type=int, default=16, metavar="N", help="number of parts that --executor divides the work into"
    )
    parser.add_argument(
        "--executor_options",
        type=dict[str, int | float | str],
        default={},
        help="further arguments of datatrove's executor, such as '{partition: cpu, time: \"04:00:00\"}' for slurm",
    )


def check(options) -> None:
    if options.convert:
        options.output = options.convert
        return
    arguments.check_job(options)
    if not (options.tokenizer or options.teacher) or not options.corpus:
        raise UserError("prepare needs --corpus, and --tokenizer or a recipe with a teacher")
    if options.part is not None:
        Part.parse(options.part)
        if options.assemble:
            raise UserError("--part and --assemble: give one of them; --assemble is a last call, after all parts")
    if options.parts < 1:
        raise UserError(f"--parts {options.parts}: must be 1 or more")
    if options.executor and (options.part or options.assemble):
        raise UserError("--executor does what --part and --assemble do; leave them out")


def check_paths(options) -> None:
    if options.convert and not (Path(options.convert) / "manifest.json").is_file():
        open_manifest(options.convert)  # which says that there is nothing to convert
    arguments.check_no_run(options.output)
    if options.convert:
        if options.corpus:
            raise UserError("--convert and --corpus: give one of them; --convert needs no text")
        return
    check_inputs(options.corpus)
    given = {"tokenizer": options.tokenizer} if options.tokenizer else {"teacher": options.teacher[0]}
    for option, name in given.items():
        arguments.check_tokenizer_folder(name, f"--{option}")


def run(options) -> dict:
    from ds_distill.data.convert import convert
    from ds_distill.data.run_data import bytes_bar, is_prepared, log_remarks, preparation_of
    from ds_distill.data.tokenizer import load_tokenizer
    from ds_distill.models.folder import find_model_folder
    from ds_distill.preflight.models import warn_if_teachers_unfit

    if options.convert:
        return _summary(options.output, convert(Path(options.convert)))
    recipe = arguments.build_recipe(options)
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    if options.teacher:
        teachers = [find_model_folder(name) for name in options.teacher]
        tokenizer = tokenizer or teachers[0].tokenizer
        warn_if_teachers_unfit(teachers, recipe, options.tokenizer)
    output = Path(options.output)
    if is_prepared(output, options.corpus, tokenizer, recipe) and (stored := read_summary(output)):
        log(f"{output}: finished before ({read_manifest(output)['real_tokens']['train']:,} tokens), nothing to do")
        return StoredSummary(stored | {"output": options.output})
    data = recipe.data
    log_header(
        {
            "text": " ".join(options.corpus),
            "tokens": f"{data.mode}, up to {data.sequence_length} per sequence, "
            f"{100 * data.heldout_fraction:g} % of the documents held out",
            "tokenizer": options.tokenizer or options.teacher[0],
            "output": options.output,
        }
    )
    preparation = preparation_of(options.corpus, tokenizer, output, recipe)
    if options.executor:
        from ds_distill.data.executors import run_executor

        run_executor(preparation, options.executor, options.parts, options.executor_options)
        if options.executor == "slurm":
            log(f"{options.parts:,} parts are submitted; the last job makes {output}")
            return PartSummary({"output": options.output, "executor": "slurm", "parts": options.parts})
        manifest = read_manifest(output)
        log_remarks(manifest)
        return _summary(options.output, manifest)
    if options.part:
        with bytes_bar() as show:
            done = preparation.run_part(Part.parse(options.part), data.workers, show)
        log(f"part {options.part}: {describe_part(done)}")
        return PartSummary({"output": options.output, "part": options.part, **done})
    with bytes_bar() as show:
        manifest = preparation.assemble() if options.assemble else preparation.run(data.workers, show)
    log_remarks(manifest)
    return _summary(options.output, manifest)


def _summary(output: str, manifest: dict) -> dict:
    return {"output": output, **{key: manifest[key] for key in REPORTED if key in manifest}}


def closing(options, summary: dict) -> str:
    if isinstance(summary, PartSummary):  # which the log has told
        return ""
    documents, tokens, output = summary["documents"], summary["real_tokens"], options.output
    table = aligned(
        [
            ("", "documents", "tokens"),
            *((name, f"{documents[key]:,}", f"{tokens[key]:,}") for key, name in SPLITS.items()),
        ]
    )
    if options.convert:
        return format_closing(table, aligned([("files", output)]), commands=[])
    if options.teacher:
        teacher = ["--teacher", *options.teacher, "--tokens", output]
        commands = [
            ("what a distillation on this text takes", ["estimate", *teacher]),
            ("distill the teacher", ["distill", *teacher, "--output", sibling(output, "student")]),
        ]
    else:
        length = options.data.sequence_length
        positions = ["--model.max_position_embeddings", length] if length > NEW_POSITIONS else []
        start = ["pretrain", "--tokenizer", options.tokenizer, "--tokens", output, *positions]
        commands = [("train a new teacher on this text", [*start, "--output", sibling(output, "teacher")])]
    return format_closing(table, aligned([("files", output)]), commands=commands)
