"""The command line: parse, execute, say what went wrong."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path

from ds_distill.commands import EVALUATED_IN, execute
from ds_distill.console import end_bars, is_first, say, say_once
from ds_distill.errors import UserError, sentence_of
from ds_distill.parser import build_parser
from ds_distill.report import write_summary

DEMO = Path(__file__).parents[1] / "ds_configs" / "demo.yaml"


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
        try:
            options = build_parser().parse_args(argv)
        except UnicodeDecodeError as error:
            raise UserError(f"--config: not UTF-8 text ({error}); save the recipe as UTF-8") from error
        command, options = options.subcommand, options[options.subcommand]
        if command == "export":
            options.output = options.output or options.model
        if command == "report":
            options.output = options.output or str(Path(options.folders[0]) / "report")
        if command not in ("evaluate", "env", "plan") and not options.output:
            raise UserError("--output is missing: the folder for everything the command makes")
        if options.get("training") and options.training.device == "cpu":
            leave_gpus_alone()
        if command not in ("study", "report"):
            say("loading torch and transformers …" if command == "finetune" else "loading torch and DeepSpeed …")
        quieten(debug)
        summary = execute(command, options)
        if ranks := sys.modules.get("ds_distill.training.ranks"):  # loaded by commands that have ranks
            ranks.leave()
        if is_first() and (options.output or command == "evaluate"):
            write_summary(summary, Path(options.output or EVALUATED_IN))
    except (UserError, OSError) as error:
        if debug:
            raise
        said = sentence_of(error)
        end_bars()
        say_once(said, f"ds-distill: {said}" if is_first() else f"\nds-distill: rank {os.environ['RANK']}: {said}")
        return 2
    except RuntimeError as error:
        if debug or not _lost_another(error):
            raise
        end_bars()
        say_once("lost", "\nds-distill: another rank has ended or cannot be reached, this one ends with it; the same command goes on from the last "
                         "checkpoint")  # fmt: skip
        return 2
    except KeyboardInterrupt:  # distillations answer it themselves
        if debug:
            raise
        end_bars()
        say("\nds-distill: interrupted; what is done is kept, and the same command goes on from there")
        return 130
    if is_first():
        print(json.dumps(summary), flush=True)
    return 0


def _lost_another(error: RuntimeError) -> bool:
    """Whether a collective broke off because of another process: gloo's errors are plain RuntimeErrors."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or any(words in str(error).lower() for words in ("by peer", "gloo/transport", "nccl"))
