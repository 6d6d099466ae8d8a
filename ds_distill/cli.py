"""The commands: parse, call one function, print."""

import difflib
import json
import logging
import os
import re
import sys
import warnings
from pathlib import Path

from ds_distill.console import end_bars, is_first, say, say_once
from ds_distill.errors import UserError
from ds_distill.recipe import Data, Losses, Recipe, Student, Training
from ds_distill.report import table, write_summary

ROOMS = {"data": Data, "student": Student, "losses": Losses, "training": Training}
DEMO = Path(__file__).parents[1] / "ds_configs" / "demo.yaml"
COMMANDS = {
    "run": "the whole road on text of this machine: tokenizer, teacher, student, baseline, table (what ./launch.sh does), or a recipe's distill",
    "prepare": "text → tokens",
    "pretrain": "masked-LM only: a new BERT, or on from any encoder, with a head if it has none: teachers",
    "distill": "train a student of a teacher",
    "plan": "before a run: parameters, memory by ZeRO stage, steps, hours, whether it fits and what to change",
    "evaluate": "held-out masked-LM loss and accuracy of Hugging Face folders, best first",
    "export": "a run's checkpoint → a Hugging Face folder",
    "env": "versions, devices, and which fused kernels run here",
}
MODEL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 768, "max_position_embeddings": 128}

INPUTS = ("txt, jsonl, csv, tsv, parquet files (.gz, .zst too), folders and patterns of them, hub data sets hf:NAME[:CONFIG][@SPLIT][#COLUMN]; "
          "FILE#COLUMN names a file's column")  # fmt: skip


EVALUATED_IN = Path("runs/evaluate")


def build_parser():
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def error(self, message, ex=None):
            raise UserError(explain(str(message), known_keys(self)))

        def parse_args(self, *arguments, **options):
            try:
                return super().parse_args(*arguments, **options)
            except RecursionError:
                raise UserError("--config: the file refers to itself or nests without end") from None

    parser = Parser(prog="ds-distill", description="Distil pretrained encoders into small ones during pretraining, on DeepSpeed.")
    commands = parser.add_subcommands(required=True)
    for name, purpose in COMMANDS.items():
        sub = Parser(description=purpose)
        sub.add_argument("--config", action="config", help="a recipe (YAML); later arguments override it")
        sub.add_argument("--debug", action="store_true", help="show the traceback of a mistake, and the libraries' own output")
        _add_arguments(sub, name)
        sub.add_argument("--output", type=str | None, default="runs/demo" if name == "run" else None, help="folder for everything the command makes")
        if name not in ("export", "env"):
            for room, kind in ROOMS.items():
                sub.add_argument(f"--{room}", type=kind, default=kind())
        commands.add_subcommand(name, sub, help=purpose)
    return parser


def _add_arguments(sub, name: str) -> None:
    """What only this command takes."""
    if name in ("run", "distill", "plan"):
        sub.add_argument("--teacher", type=str | None, default=None, help="folder of a BERT masked-LM")
    if name == "run":
        sub.add_argument("--corpus", type=str, nargs="*", default=[], help="as for prepare; none: texts found on this machine")
        sub.add_argument("--fresh", action="store_true", help="start over instead of going on with what is there")
        sub.add_argument("--corpus_megabytes", type=float, default=6.0, help="how much of this machine's documentation to read")
        sub.add_argument("--vocabulary", type=int, default=8192, help="tokens of the tokenizer trained on it")
        sub.add_argument("--teacher_tokens", type=int, default=1_000_000, help="tokens the small teacher is pretrained on")
    elif name not in ("export", "env"):
        sub.add_argument("--corpus", "--input", type=str, nargs="+", default=[], help=INPUTS)
    if name in ("run", "pretrain"):
        sub.add_argument("--model", type=dict[str, int], default=MODEL, help="sizes of the BERT to pretrain, transformers' BertConfig")
    if name == "pretrain":
        sub.add_argument("--from", type=str | None, default=None, help="folder of an encoder to go on with; a trunk without a masked-LM head gets one")
    if name in ("prepare", "pretrain"):
        sub.add_argument("--tokenizer", type=str | None, default=None, help="folder with the tokenizer")
    if name == "plan":
        sub.add_argument("--ranks", type=int, default=1, help="devices in all")
        sub.add_argument("--memory_gib", type=float | None, default=None, help="memory of a device; this machine's when not given")
        sub.add_argument("--tokens_per_second", type=float | None, default=None, help="of all ranks together; measured here, briefly, when not given")
    if name in ("run", "pretrain", "distill", "evaluate", "plan"):
        sub.add_argument("--tokens", type=str | None, default=None, help="folder made by prepare (instead of --corpus)")
    if name in ("run", "pretrain", "distill"):
        sub.add_argument("--heldout", type=str, nargs="+", default=[], help="further held-out texts, each measured on its own along the way")
    if name == "evaluate":
        sub.add_argument("--model", type=str, nargs="+", default=[], help="Hugging Face folders")
        sub.add_argument("--untrained", action="store_true", help="also the first one's architecture with random weights")
    if name == "export":
        sub.add_argument("--run", type=str | None, default=None, help="the --output folder of distill or pretrain")
        sub.add_argument("--step", type=int | None, default=None, help="optimizer step of the checkpoint; the newest when not given")


def known_keys(parser) -> list[str]:
    """All option names of a parser, its subcommands included, without dashes."""
    keys = []
    for action in parser._actions:
        keys += [option.removeprefix("--") for option in action.option_strings if option.startswith("--")]
    return keys


def explain(message: str, keys: list[str]) -> str:
    """A parser's message in one line, with the nearest known key where one is unknown."""
    message = " ".join(line.strip() for line in message.splitlines() if line.strip())
    unknown = re.search(r"nrecognized arguments: --?([\w.]+)", message) or re.search(r"does not accept option '([\w.]+)'", message)
    if unknown:
        every = keys + [f"{room}.{key}" for room, kind in ROOMS.items() for key in kind.__dataclass_fields__]
        near = difflib.get_close_matches(unknown[1], every, n=1, cutoff=0.4)
        near = near or difflib.get_close_matches(unknown[1].split(".")[-1], [key.split(".")[-1] for key in every], n=1, cutoff=0.5)
        return f"{unknown[1]}: no such key" + (f"; did you mean {near[0]}?" if near else "") + " (--help lists all)"
    wrong = re.match(r'Parser key "([\w.]+)": (.*)', message)
    if wrong:
        return f"{wrong[1]}: {wrong[2]}"
    choice = re.search(r"invalid choice: '(\w+)'", message)
    near = difflib.get_close_matches(choice[1], COMMANDS, n=1) if choice else []
    return f"{choice[1]}: no such command; did you mean {near[0]}?" if near else message


def leave_gpus_alone() -> None:
    """training.device = cpu: torch and DeepSpeed choose their device while they are imported, so this comes before."""
    os.environ["DS_ACCELERATOR"], os.environ["CUDA_VISIBLE_DEVICES"] = "cpu", ""


def quieten(debug: bool) -> None:
    """Leave the output to our own lines, unless asked otherwise."""
    if debug:
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # where a rank is lost, the others' stores warn with pages of C++ frames
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(logging.WARNING)
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns its exit status. Mistakes are said once, by the first rank."""
    argv = list(sys.argv[1:] if argv is None else argv)
    argv = [word for word in argv if not word.startswith("--local_rank")]
    debug = "--debug" in argv
    if argv[:1] == ["run"] and not any(word.split("=")[0] in ("--config", "--teacher") for word in argv):
        argv[1:1] = ["--config", str(DEMO)]
    try:
        options = build_parser().parse_args(argv)
        command, options = options.subcommand, options[options.subcommand]
        if command not in ("evaluate", "env", "plan") and not options.output:
            raise UserError("--output is missing: the folder for everything the command makes")
        if "training" in options and options.training.device == "cpu":
            leave_gpus_alone()
        say("loading torch and DeepSpeed …")
        quieten(debug)
        summary = execute(command, options)
        from ds_distill.training.ranks import leave  # loaded by now

        leave()
        if is_first() and (options.output or command == "evaluate"):
            write_summary(summary, Path(options.output or EVALUATED_IN))
    except (UserError, OSError) as error:
        if debug:
            raise
        # a full or read-only disk is the user's to put right too
        said = error if isinstance(error, UserError) else f"{error.filename or 'input or output'}: {error.strerror or error}"
        end_bars()
        say_once(str(said), f"ds-distill: {said}" if is_first() else f"\nds-distill: rank {os.environ['RANK']}: {said}")
        return 2
    except RuntimeError as error:
        if debug or not _lost_another(error):
            raise
        end_bars()
        say_once("lost", "\nds-distill: another rank has ended or cannot be reached, this one ends with it; the same command goes on from the last "
                         "checkpoint")  # fmt: skip
        return 2
    if is_first():
        print(json.dumps(summary), flush=True)
    return 0


def recipe_of(options) -> Recipe:
    """The recipe in parsed options; a section with nothing under it has the defaults."""
    rooms = {room: kind() if options[room] is None else options[room] for room, kind in ROOMS.items()}
    return Recipe(**{room: value if isinstance(value, ROOMS[room]) else ROOMS[room](**vars(value)) for room, value in rooms.items()})


def _lost_another(error: RuntimeError) -> bool:
    """Whether a collective broke off because of another process: gloo's errors are plain RuntimeErrors."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(words in str(error).lower() for words in ("by peer", "gloo/transport", "nccl"))


def execute(command: str, options) -> dict:
    """Run a parsed command; returns its summary. The libraries are imported only here: --help and mistakes need not wait for them."""
    from ds_distill import demo, environment, plan, runs
    from ds_distill.data.sources import pieces_of
    from ds_distill.data.tokenizer import load_tokenizer

    if command == "env":
        return _print_environment(environment.describe())
    output = Path(options.output) if options.output else None
    if command == "export":
        if not options.run:
            raise UserError("--run is missing: the --output folder of distill or pretrain")
        return runs.export_run(Path(options.run), output, options.step)
    recipe = recipe_of(options)
    recipe.check()
    if command == "plan":
        if not options.teacher:
            raise UserError("--teacher is missing")
        if options.tokens:
            recipe = runs.with_tokens(recipe, Path(options.tokens))
        found = plan.plan(recipe, options.teacher, options.tokens, options.ranks, options.memory_gib, options.tokens_per_second)
        plan.show(found)
        return found
    if command == "run" and not options.teacher:
        if options.heldout or options.tokens:
            raise UserError("--teacher is missing: --heldout and --tokens are for a teacher of yours; the demo makes its own")
        return demo.run(recipe, dict(options.model), output, corpus=options.corpus, megabytes=options.corpus_megabytes,
                        vocabulary=options.vocabulary, teacher_tokens=options.teacher_tokens, fresh=options.fresh)  # fmt: skip
    if command == "prepare":
        if not options.tokenizer or not options.corpus:
            raise UserError("prepare needs --tokenizer and --corpus")
        pieces_of(options.corpus, column=recipe.data.column, streaming=recipe.data.streaming)  # a wrong path is said before a wrong tokenizer
        manifest = runs.prepare_tokens(options.corpus, load_tokenizer(options.tokenizer), output, recipe)
        kept = ("mode", "blocks", "real_tokens", "documents", "found", "unknown_share", "sources", "fingerprint")
        return {"output": str(output), **{key: manifest[key] for key in kept}}
    if command == "pretrain":
        options.tokenizer = options.tokenizer or options["from"]
    source = {"run": "teacher", "distill": "teacher", "pretrain": "tokenizer", "evaluate": "model"}[command]
    if not options[source]:
        raise UserError(f"--{source} is missing")
    tokens = options.get("tokens")
    if not tokens and not options.corpus:
        raise UserError("--corpus (text) is missing; or --tokens, made by prepare")
    if not tokens:
        tokenizer = options[source][0] if command == "evaluate" else options[source]
        tokens = runs.tokens_for(options.corpus, tokenizer, recipe, (output or EVALUATED_IN) / "tokens", bound=output)
    recipe = runs.with_tokens(recipe, Path(tokens))
    if command != "evaluate":
        held = runs.heldout_sets(options.heldout, Path(tokens), recipe, output)
    if command in ("run", "distill"):
        return runs.distill(recipe, options.teacher, Path(tokens), output, heldout=held)
    if command == "pretrain":
        return runs.pretrain(recipe, options["from"] or dict(options.model), Path(tokens), output, heldout=held)
    rows = runs.evaluate_folders(options.model, Path(tokens), recipe, options.untrained)
    if is_first():
        print(table(rows, EVALUATED))
    return rows[0] if len(rows) == 1 else {"models": rows}


EVALUATED = {"model": "model", "parameters": "parameters", "heldout_mlm_loss": "held-out MLM loss (nats)", "heldout_mlm_accuracy": "accuracy"}


def _print_environment(found: dict) -> dict:
    if is_first():
        versions = [{"package": package, "version": version} for package, version in found["versions"].items()]
        print(table(versions, {"package": "package", "version": "version"}))
        devices = [{"what": key.replace("_", " ").replace("gib", "GiB"), "value": ", ".join(value) or None if isinstance(value, list) else value}
                   for key, value in found["devices"].items()]  # fmt: skip
        print("\n" + table(devices, {"what": "device", "value": ""}))
        rows = [{"kernel": row["kernel"], "active": "yes" if row["active"] else "no", "why": row["why"]} for row in found["kernels"]]
        print("\n" + table(rows, {"kernel": "fused kernel", "active": "active", "why": "why"}) + "\n")
    return found
