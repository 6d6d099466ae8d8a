"""Reproduce the paper's table 3: parameters, and the time of a full pass over STS-B's dev set on a CPU.

    python -m benchmarks.inference.table3 --data validation.jsonl.gz --student DIR --teacher DIR [--report DIR]

As in the paper (Sanh et al. 2019, section 3), the models read one sequence at a time. They use one
thread. Any file of examples works if it has a column `label` and one or two columns of text. Texts
are cut at 512 tokens, or at what the shortest model reads. A student with random weights takes as
long as a trained one. Rows take turns, each with a tenth of the file at a time.

The last column stands for a small device: the least memory in which the row runs
(benchmarks/inference/min_memory.py). The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import datetime
import json
import tempfile
import time
from pathlib import Path

from benchmarks.harness.cli import make_folder, user_errors
from benchmarks.inference.backends import BACKENDS, Row, make, serve
from ds_distill.utils.console import progress, spinner
from ds_distill.utils.errors import UserError

# Everything that needs torch is imported within functions. The rows' processes import this file too,
# and those that do not use torch must not pay its memory.
BASE, STUDENT = "BERT-base", "student"
PAPER = {BASE: (110, 668), STUDENT: (66, 410)}  # millions of parameters, seconds: table 3, on an Intel Xeon E5-2690 v3
PARTS = 10
LONGEST = 512  # tokens per example, as in BERT
CPU_BACKENDS = [name for name, backend in BACKENDS.items() if not backend.gpu]
COLUMNS = {
    "model": "model",
    "body": "backend",
    "parameters": "parameters (M)",
    "seconds": "inference time (s)",
    "share": "÷ BERT-base's",
    "paper_parameters": "paper: parameters (M)",
    "paper_seconds": "paper: time (s)",
    "paper_share": "paper: ÷ BERT-base's",
    "memory": "minimum memory (MB)",
}


def count_tokens(data: Path, tokenizer_folder: str, most: int) -> list[int]:
    """Return the number of tokens of each example, as a classifier reads it."""
    from ds_distill.data.tokenizer import load_tokenizer
    from ds_distill.exporters.task_score import load_labeled_examples

    texts = load_labeled_examples(data).texts
    encoded = load_tokenizer(tokenizer_folder)(*texts, truncation=True, max_length=most)
    return [len(ids) for ids in encoded["input_ids"]]


def cut(lengths: list[int], positions: dict[str, int]) -> tuple[list[int], str]:
    """Cut the lengths to what all models read, and describe the cut in words.

    `positions` holds, by model, the most tokens that the model reads.
    """
    shortest = min(positions, key=positions.get)
    most = min(LONGEST, positions[shortest])
    count = sum(length > most for length in lengths)
    why = f", the maximum length of {shortest}; {count:,} were longer" if most < LONGEST else ""
    return [min(length, most) for length in lengths], f"truncated to {most} tokens{why}"


def passes(rows: list[Row], lengths: list[int]) -> dict[str, float]:
    """Return the seconds of a full pass, by the row's name."""
    from benchmarks.harness.interleave import Variant

    variants, seconds = [], {row.name: 0.0 for row in rows}
    try:
        for row in rows:
            variants.append(
                Variant(
                    row.name, make, row, serve=serve, environment={"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
                )
            )
            with spinner(f"loading {row.name}"):
                variants[-1].ask("start")
                variants[-1].ask(("time", "pass", [[max(lengths)]], 0.0))
        size = -(-len(lengths) // PARTS)
        with progress(len(rows) * len(lengths), "pass", "sequence") as bar:
            for start in range(0, len(lengths), size):
                part = [[length] for length in lengths[start : start + size]]
                for variant in variants:
                    bar.set_postfix_str(variant.name)
                    time.sleep(0.1)
                    seconds[variant.name] += sum(variant.ask(("time", "pass", part, 0.0))["latencies"])
                    bar.update(len(part))
    finally:
        for variant in variants:
            variant.stop()
    return seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference.table3",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="jsonl, csv or tsv file (also .gz) with a column `label` and one or two columns of text",
    )
    parser.add_argument(
        "--student", help="Hugging Face folder of the student (default: random weights in DistilBERT's size)"
    )
    parser.add_argument("--teacher", help="Hugging Face folder of the student's teacher, to measure it too")
    parser.add_argument(
        "--tokenizer", help="folder of the tokenizer that reads the examples (default: the student's or the teacher's)"
    )
    parser.add_argument(
        "--bodies",
        nargs="+",
        choices=BACKENDS,
        default=["eager_fp32", "openvino_int8", "onnx_int8"],
        dest="backends",
        metavar="BACKEND",
        help=f"backends of the student: {', '.join(CPU_BACKENDS)} (default: eager_fp32 openvino_int8 onnx_int8)",
    )
    parser.add_argument("--no-memory", action="store_true", help="do not measure the minimum memory")
    parser.add_argument("--report", type=Path, help="folder for table3.md, table3.html and table3.json")
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="table3-", ignore_cleanup_errors=True) as scratch,
        user_errors("benchmarks.inference.table3"),
    ):
        return run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> int:
    import torch

    from benchmarks.harness.machine import describe
    from benchmarks.inference.min_memory import least_megabytes
    from benchmarks.inference.suite import model_folders, prepare, runnable
    from ds_distill.reporting.pages import Section, write_page
    from ds_distill.reporting.tables import table
    from ds_distill.utils.files import write_json

    reader = args.tokenizer or args.student or args.teacher
    if not reader:
        raise UserError("--tokenizer is missing; give the folder of a tokenizer, or --student or --teacher")
    if on_gpu := [backend for backend in args.backends if backend not in CPU_BACKENDS]:
        raise UserError(f"--bodies {' '.join(on_gpu)}: table 3 is for CPUs; choose from {', '.join(CPU_BACKENDS)}")
    runnable(args.backends)
    make_folder("--report", args.report)
    lengths = count_tokens(args.data, reader, LONGEST)
    folders = model_folders(args, scratch)
    sources = prepare(folders, "classification", args.backends, scratch, [])
    lengths, cut_at = cut(lengths, {label: source.positions for label, (source, _) in sources.items()})
    rows = [
        Row(label, backend, "classification", 1, folders[label], sources[label][1])
        for label in folders
        for backend in (args.backends if label == STUDENT else ["eager_fp32"])
    ]
    seconds = passes(rows, lengths)
    base = next(seconds[row.name] for row in rows if (row.model, row.backend) == (BASE, "eager_fp32"))
    lines = []
    for row in rows:
        parameters = sum(parameter.numel() for parameter in sources[row.model][0].model.parameters())
        line = {
            "model": row.model,
            "body": BACKENDS[row.backend].label,
            "parameters": parameters / 1e6,
            "seconds": seconds[row.name],
            "share": seconds[row.name] / base,
        }
        if row.backend == "eager_fp32" and row.model in PAPER and not (row.model == STUDENT and args.student):
            line |= dict(zip(("paper_parameters", "paper_seconds"), PAPER[row.model], strict=True))
            line["paper_share"] = PAPER[row.model][1] / PAPER[BASE][1]
        if not args.no_memory:
            line["memory"] = least_megabytes(row, min(128, max(lengths)))
        lines.append(line)
    result = {
        "data": args.data.name,
        "examples": len(lengths),
        "tokens": sum(lengths),
        "cut": cut_at,
        "machine": describe(torch.device("cpu")),
        "date": datetime.date.today().isoformat(),
        "student": args.student or "DistilBERT's size, random weights",
        "teacher": args.teacher,
        "rows": lines,
    }
    shown = [line | {"parameters": f"{line['parameters']:.1f}", "seconds": f"{line['seconds']:.1f}"} for line in lines]
    columns = {key: name for key, name in COLUMNS.items() if any(key in line for line in lines)}
    text = (
        f"{args.data.name}, {len(lengths):,} examples, {sum(lengths):,} tokens ({cut_at}), one at a time, one thread, "
        f"with a classification head; {result['machine']}, {result['date']}. "
        f"The minimum memory is for a sequence of {min(128, max(lengths))} tokens."
    )
    print(f"\n{text}\n\n{table(shown, columns)}\n")
    print(json.dumps(result), flush=True)
    if args.report:
        marked = tuple(i for i, line in enumerate(lines) if line["model"] == STUDENT)
        write_page(
            args.report,
            "table3",
            "A full pass over a dev set",
            "`python -m benchmarks.inference.table3`; the paper's times are for the dev set of STS-B",
            [Section("Table 3", text, shown, columns, marked)],
        )
        write_json(args.report / "table3.json", result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
