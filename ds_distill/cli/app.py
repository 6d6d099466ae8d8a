"""The command line: it parses a command, runs it and reports what went wrong."""

import contextlib
import logging
import os
import sys
import textwrap
import warnings
from pathlib import Path
from typing import cast

from ds_distill import __version__
from ds_distill.builds.inductor_cache import keep_cache_in_environment
from ds_distill.cli import demo, push
from ds_distill.cli.commands import COMMANDS
from ds_distill.cli.parser import build_parser
from ds_distill.cli.terminal import replace_unencodable_characters, restart_in_utf8, tolerate_broken_streams
from ds_distill.config.renamed import RENAMED_COMMANDS
from ds_distill.distributed import launch_environment
from ds_distill.distributed.failures import explain_failure, report_failure
from ds_distill.utils.console import close_bars, is_first, log, log_once
from ds_distill.utils.errors import (
    LOST_STATUS,
    RankError,
    StoppedError,
    UserError,
    did_you_mean,
    get_message,
    is_disk_full,
)
from ds_distill.utils.files import json_text, write_summary
from ds_distill.utils.hub import OFFLINE
from ds_distill.utils.parent import end_with_study
from ds_distill.utils.progress import ProgressWatch
from ds_distill.utils.shell import note_path

# the libraries that a command loads, if not torch and DeepSpeed
_TRANSFORMERS = "torch and transformers"
LOADED = {
    "augment": _TRANSFORMERS,
    "finetune": _TRANSFORMERS,
    "trim": _TRANSFORMERS,
    "study": "",
    "report": "",
    "make-qnli": "",
}
FIRST_STEPS = """\
usage: ds-distill COMMAND [options]

demo: distill a small student and see what it keeps, in minutes
  ds-distill demo
distill your teacher into a smaller student
  ds-distill distill --teacher DIR --corpus FILE --output DIR
fine-tune the student on a task
  ds-distill finetune --task sst2 --model DIR --output DIR
convert it for deployment
  ds-distill export --model DIR --format onnx-int8

{commands}
ds-distill --help describes each command, ds-distill COMMAND --help its options.
"""


def silence_libraries(debug: bool) -> None:
    """Silence the libraries, so that only this program's own lines are shown, unless asked otherwise."""
    if debug:
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Where a rank is lost or cannot join, torch's sockets and stores print pages of C++ frames, on every rank. The
    # error that they raise says the same, and is reported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.disable(logging.WARNING)
    from transformers.utils import logging as hf_logging

    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


RESUMED = {"augment", "distill", "finetune", "multitask", "prepare", "pretrain", "prune", "run", "study"}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status. The first rank reports a mistake, once."""
    if argv is None:
        restart_in_utf8()
        tolerate_broken_streams()
        argv = sys.argv[1:]
    replace_unencodable_characters()
    note_path()
    argv = [word for word in argv if not word.startswith("--local_rank")]
    if not argv:
        commands = textwrap.fill(f"commands: {', '.join(COMMANDS)}", 80, subsequent_indent="  ")
        print(FIRST_STEPS.format(commands=commands), end="", file=sys.stderr)
        return 2
    if argv[0] in ("--version", "version") or argv[1:2] == ["--version"]:
        print(f"ds-distill {__version__}")
        return 0
    debug = "--debug" in argv
    end_with_study()
    try:
        if argv[0] in COMMANDS and not launch_environment.normalize_environment(argv[0]):
            return 0
        try:
            options = build_parser().parse_args(_parse_command(argv))
        except SystemExit as ended:  # after --help
            return cast(int, ended.code or 0)
        command, options = COMMANDS[options.subcommand], options[options.subcommand]
        summary = _run(argv[0], options, debug)
    except Exception as error:
        status = None if debug else _report(error)
        _leave_job(error)
        if status is None:
            raise
        return status
    except KeyboardInterrupt:  # distillations handle it themselves
        if debug:
            raise
        close_bars()
        kept = "finished work is kept, and the same command resumes from there"
        log(f"\nds-distill: interrupted; {kept if argv[0] in RESUMED else 'the same command starts over'}")
        return 130
    if is_first() and sys.stdout.isatty() and not options.json:
        if closing := command.closing(options, summary):
            print(closing, flush=True)
    elif is_first():
        print(json_text(summary), flush=True)
    return 0


def _run(name: str, options, debug: bool) -> dict:
    """Check a command's options and run it; return its summary."""
    command = COMMANDS[name]
    if options.offline:
        os.environ[OFFLINE] = "1"  # before huggingface_hub is imported, which reads it then; jobs of a study inherit it
    if options.get("training") and options.training.device == "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu":
        launch_environment.hide_gpus()
    command.check(options)
    push.check(options)
    # With several ranks, the others would wait for one that fails before it joins them. Also, some
    # of the paths need to exist for the first rank alone.
    if launch_environment.world_size() == 1:
        command.check_paths(options)
    keep_cache_in_environment()
    if libraries := LOADED.get(name, "torch and DeepSpeed"):
        log(f"loading {libraries} …")
    silence_libraries(debug)
    if libraries and name != "export":  # its exporters load torch._dynamo in any case
        from ds_distill.import_fixes import defer_trainers_imports, defer_unused_imports

        defer_unused_imports()
        if name in ("finetune", "multitask"):
            defer_trainers_imports()
    try:
        with ProgressWatch() if launch_environment.world_size() == 1 else contextlib.nullcontext():
            push.check_access(options)
            summary = command.run(options)
    except Exception as error:
        if debug or isinstance(error, UserError) or not is_disk_full(error):
            raise
        raise UserError(
            f"{options.output or 'the disk'}: {_file_prefix(error)}the disk is full; free some space, or choose "
            "another --output"
        ) from error
    if process_group := _process_group():
        process_group.stop_heartbeats()
    if is_first() and options.output:
        write_summary(summary, Path(options.output))
    if is_first() and options.get("push_to_hub"):
        summary = push.upload(options, summary)
        write_summary(summary, Path(options.output))
    return summary


def _report(error: Exception) -> int | None:
    """Print what a user can do about an error, and return the exit status; None where that is unknown."""
    if failure := explain_failure(error):
        close_bars()
        report_failure(failure)
        return LOST_STATUS if failure.follows else 2
    if not isinstance(error, UserError | OSError):
        return None
    message = get_message(error)
    close_bars()
    line = f"ds-distill: {message}" if is_first() else f"\nds-distill: rank {os.environ['RANK']}: {message}"
    if isinstance(error, RankError):
        print(line, file=sys.stderr, flush=True)
    else:
        log_once(message, line, by_all=isinstance(error, StoppedError))  # the ranks have agreed to stop
    return StoppedError.STATUS if isinstance(error, StoppedError) else 2


def _process_group():
    """Return the module that has the job's ranks, where a command has loaded it."""
    return sys.modules.get("ds_distill.distributed.process_group")


def _leave_job(error: Exception) -> None:
    """End the other ranks too, unless all have agreed to end."""
    if process_group := _process_group():
        if isinstance(error, StoppedError):
            process_group.stop_heartbeats()
        else:
            process_group.end_job()


def _file_prefix(error: Exception) -> str:
    """Return the file at which the disk was full, where the error names it."""
    return f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""


def _parse_command(argv: list[str]) -> list[str]:
    """Return the words of a command as they are parsed; raise UserError where they do not begin with one."""
    first, *rest = argv
    if first == "help" and rest and rest[0] not in COMMANDS:
        first = rest[0]
    elif first == "help":
        return [*rest[:1], "--help"]
    if first in ("-h", "--help"):
        return argv
    if first.startswith("-"):
        raise UserError(
            f"{first}: the command must come first, as in ds-distill distill {first} …; "
            f"the commands are {', '.join(COMMANDS)}"
        )
    if first in RENAMED_COMMANDS:
        raise UserError(f"{first}: no such command; it is called {RENAMED_COMMANDS[first]} now")
    if first not in COMMANDS:
        raise UserError(
            f"{first}: no such command{did_you_mean(first, COMMANDS, 0.6)} (the commands are {', '.join(COMMANDS)})"
        )
    if first == "run" and rest[:1] and rest[0] in COMMANDS:
        raise UserError(
            f"{rest[0]}: not expected after run, the command that launch.sh starts; run distills when --teacher is "
            f"given, so leave {rest[0]} out"
        )
    if first in ("run", "demo") and not any(word.split("=")[0] in ("--config", "--teacher") for word in rest):
        return [first, "--config", str(demo.default_config(rest)), *rest]
    return argv
