"""Measure time and size of a study's models in every runtime, for a plot of score against both.

    python -m benchmarks.inference.pareto --study STUDY --output PARETO
    ds-distill report STUDY PARETO

The models are the study's teacher and students, and those given by --model LABEL=FOLDER. What is timed
is the encoder without a head, in a process of its own for each model and backend, with the models of a
runtime taking turns. Models whose weights have the same shapes are measured once.

The same command resumes after an interruption, and measures what has been added to the study since.
--score-files also scores quantized files on the tasks' dev sets. Without it, their points are marked as
scored in PyTorch.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import re
import shutil
from pathlib import Path

from benchmarks.harness.cli import amount, count, make_folder, user_errors
from benchmarks.inference.backends import BACKENDS, Row
from ds_distill.utils.errors import UserError
from ds_distill.utils.machine import cores

# Everything that needs torch is imported within functions. The rows' processes import this file too,
# and those that do not use torch must not pay its memory.
# By backend: its runtime, its arithmetic, and whether that is PyTorch's in fp32 except for rounding.
RUNTIMES = {
    "eager_fp32": ("PyTorch", "fp32", True),
    "eager_bf16": ("PyTorch", "bf16", False),
    "compiled_fp32": ("torch.compile", "fp32", True),
    "compiled_bf16": ("torch.compile", "bf16", False),
    "onnx_fp32": ("ONNX Runtime", "fp32", True),
    "onnx_int8": ("ONNX Runtime", "int8", False),
    "onnx_int8_vnni": ("ONNX Runtime", "int8, VNNI", False),
    "onnx_int4": ("ONNX Runtime", "int4 weights", False),
    "openvino_fp32": ("OpenVINO", "fp32", True),
    "openvino_bf16": ("OpenVINO", "bf16", False),
    "openvino_int8": ("OpenVINO", "int8", False),
    "openvino_int4": ("OpenVINO", "int4 weights", False),
    "gpu_fp32": ("PyTorch on a GPU", "fp32", True),
    "gpu_fp16": ("PyTorch on a GPU", "fp16", False),
    "gpu_bf16": ("PyTorch on a GPU", "bf16", False),
}
USUAL = (
    "eager_fp32",
    "onnx_fp32",
    "onnx_int8",
    "onnx_int8_vnni",
    "onnx_int4",
    "openvino_fp32",
    "openvino_int8",
    "openvino_int4",
)


def shape(text: str) -> tuple[int, int]:
    """Return an option's value, SEQUENCESxTOKENS, as two numbers of at least 1."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: must be SEQUENCESxTOKENS, such as 1x128")
    return int(match[1]), int(match[2])


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference.pareto",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", type=Path, nargs="+", default=[], help="--output folders of studies")
    parser.add_argument(
        "--model",
        nargs="+",
        default=[],
        metavar="LABEL=FOLDER",
        help="further models; one with the name of a row of the study, such as a variant's, has that row's score",
    )
    parser.add_argument("--teacher", help="folder of the studies' teacher, if it has moved since")
    parser.add_argument("--output", type=Path, required=True, help="folder for pareto.json and the files' scores")
    parser.add_argument(
        "--backends",
        nargs="+",
        choices=RUNTIMES,
        default=[],
        metavar="BACKEND",
        help=f"{', '.join(RUNTIMES)} (default: those of {', '.join(USUAL)} that run on this machine)",
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=shape,
        default=[(1, 128), (32, 128)],
        metavar="SEQUENCESxTOKENS",
        help="what a call reads (default 1x128 32x128)",
    )
    parser.add_argument("--threads", type=count, default=cores(), help=f"CPU threads (default: all cores, {cores()})")
    parser.add_argument("--rounds", type=count, default=5, help="rounds in which the models take turns (default 5)")
    parser.add_argument(
        "--seconds", type=amount, default=0.6, help="seconds per shape and turn, for at least one call (default 0.6)"
    )
    parser.add_argument(
        "--patience", type=amount, default=12, help="seconds after which a shape is not repeated (default 12)"
    )
    parser.add_argument(
        "--together",
        type=count,
        default=8,
        help="the most models and arithmetics in memory at once, beside the teachers (default 8)",
    )
    parser.add_argument("--score-files", action="store_true", help="score quantized files on the tasks' dev sets")
    return parser


def main() -> int:
    args = parser().parse_args()
    with user_errors("benchmarks.inference.pareto"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    from benchmarks.inference.pareto_models import assign_keys, find_models, read_study
    from benchmarks.inference.suite import runnable
    from ds_distill.study.variants import TEACHER
    from ds_distill.utils.console import log

    if not args.study and not args.model:
        raise UserError("nothing to measure; give --study STUDY, or --model LABEL=FOLDER")
    make_folder("--output", args.output)
    backends = runnable(args.backends, USUAL, "--backends")
    models = find_models(args.study, args.model, args.teacher)
    results = open_results(args, backends)
    shapes = {key: about["shape"] for key, about in results.measured.items() if "shape" in about}
    keys = assign_keys(models, shapes)
    for key in keys:
        results.measured.setdefault(key, {"megabytes": {}})["shape"] = shapes[key]
    known = {(entry["study"], entry["model"]): entry for entry in results.models}
    known |= {
        (model.study, model.name): {"study": model.study, "model": model.name, "measured": key}
        for model, key in zip(models, keys, strict=True)
    }
    results.models = list(known.values())
    folders = {}
    for model, key in zip(models, keys, strict=True):
        folders.setdefault(key, model.folder)
    references = {key for model, key in zip(models, keys, strict=True) if model.study and model.name == TEACHER}
    measure_all(args, results, folders, references, backends)
    if args.score_files:
        from benchmarks.inference.pareto_scores import score_files

        for folder in args.study:
            inexact = [name for name in backends if not RUNTIMES[name][2] and not BACKENDS[name].gpu]
            score_files(read_study(folder), folder, args.output, inexact, args.threads)
    shutil.rmtree(args.output / "files", ignore_errors=True)
    log(f"{args.output / 'pareto.json'} is complete; draw it with: ds-distill report STUDY {args.output}")
    return 0


def open_results(args: argparse.Namespace, backends: list[str]):
    """Return what --output holds, or results without a measurement; raise UserError for those of other settings."""
    import torch

    from benchmarks.harness.machine import describe
    from ds_distill.study.pareto_points import FILE, ParetoFile

    machine = describe(torch.device("cuda" if any(BACKENDS[name].gpu for name in backends) else "cpu"))
    shapes = [f"{batch} × {length}" for batch, length in args.shapes]
    new = ParetoFile(machine, datetime.date.today().isoformat(), args.threads, shapes)
    old = ParetoFile.read(args.output) if (args.output / FILE).is_file() else new
    for name in ("machine", "threads", "shapes"):
        if (before := getattr(old, name)) != (now := getattr(new, name)):
            raise UserError(
                f"--output {args.output}: measured with {name} {before}, not {now}; choose another --output, because "
                "these times cannot stand in one plot"
            )
    for name in backends:
        old.backends[name] = dict(zip(("runtime", "precision", "exact"), RUNTIMES[name], strict=True))
    return old


def measure_all(
    args: argparse.Namespace, results, folders: dict[str, Path], references: set[str], backends: list[str]
) -> None:
    """Measure what lacks rounds, runtime by runtime, and write pareto.json after each export and each round."""
    for runtime in dict.fromkeys(RUNTIMES[name][0] for name in backends):
        here = [name for name in backends if RUNTIMES[name][0] == runtime]
        done = {
            (key, name): len(
                {turn["round"] for turn in results.turns if (turn["measured"], turn["backend"]) == (key, name)}
            )
            for key in folders
            for name in here
        }
        lacking = [pair for pair, rounds in done.items() if rounds < args.rounds]
        base = [(key, name) for key in references for name in here if RUNTIMES[name][2] and key in folders]
        others = [pair for pair in lacking if pair not in base]
        for start in range(0, len(others) or 1, args.together):
            group = [*base, *others[start : start + args.together]]
            rounds = max((args.rounds - done[pair] for pair in group if pair in lacking), default=0)
            if rounds:
                rows = [
                    row
                    for key in dict.fromkeys(key for key, _ in group)
                    for row in export(args, results, folders, key, backends)
                    if (key, row.backend) in group
                ]
                take_turns(args, results, rows, rounds)


def export(args: argparse.Namespace, results, folders: dict[str, Path], key: str, backends: list[str]) -> list[Row]:
    """Write a model's files for all backends, where they are not there yet, and their sizes into `results`."""
    from benchmarks.inference.metrics import count_bytes
    from benchmarks.inference.suite import prepare
    from ds_distill.study.pareto_points import FILE
    from ds_distill.study.scheduler import make_folder_name
    from ds_distill.utils.files import write_json

    name = make_folder_name(key)
    files, about = args.output / "files" / name / "encoder", results.measured[key]
    needed = [files / (BACKENDS[backend].file or "inputs.txt") for backend in backends]
    if not about["megabytes"].keys() >= {*backends} or not all(file.is_file() for file in needed):
        partial = args.output / "partial"  # so that a file that is there is whole
        [(source, written)] = prepare({name: folders[key]}, "encoder", backends, partial, []).values()
        shutil.rmtree(files, ignore_errors=True)
        files.parent.mkdir(parents=True, exist_ok=True)
        written.rename(files)
        shutil.rmtree(partial)
        about["parameters"] = source.traced.num_parameters()
        about["positions"] = source.positions
        about["megabytes"] |= {backend: count_bytes(source, files, BACKENDS[backend]) / 1e6 for backend in backends}
        write_json(args.output / FILE, vars(results))
    return [Row(key, backend, "encoder", args.threads, folders[key], files, about["positions"]) for backend in backends]


def take_turns(args: argparse.Namespace, results, rows: list[Row], rounds: int) -> None:
    """Let models take turns for some rounds, and write pareto.json after each."""
    from benchmarks.inference.suite import measure
    from ds_distill.study.pareto_points import FILE
    from ds_distill.utils.files import write_json

    cases = {f"{batch} × {length}": [[length] * batch] for batch, length in args.shapes}
    numbers = itertools.count(max((turn["round"] for turn in results.turns), default=-1) + 1)

    def keep(measurements: list) -> None:
        number = next(numbers)
        for one in measurements:
            for case, turns in one.latencies.items():
                if len(turns) == kept.get((one.row, case), 0):
                    continue  # it had no turn in this round
                kept[one.row, case] = len(turns)
                turn = {"round": number, "measured": one.row.model, "backend": one.row.backend, "shape": case}
                results.turns.append(turn | {"milliseconds": 1e3 * one.medians(case)[-1]})
        write_json(args.output / FILE, vars(results))

    kept: dict[tuple, int] = {}
    measure(rows, cases, argparse.Namespace(**vars(args) | {"rounds": rounds}), {}, keep)


if __name__ == "__main__":
    raise SystemExit(main())
