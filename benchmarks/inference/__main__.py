"""Compare the student's latency, throughput, size and memory with its teacher's and BERT-base's.

    python -m benchmarks.inference
        BERT-base and DistilBERT sizes, random weights
    python -m benchmarks.inference --student DIR --teacher DIR --text FILE --report DIR
    python -m benchmarks.inference --quick
        batch 1 and 32 of 128 tokens, encoder only

Every model runs in every backend ("body" in the JSON: PyTorch, torch.compile, ONNX Runtime,
OpenVINO; fp32, bf16, int8, int4 weights). Each pair has a process of its own with the stated number of threads.
The processes of a group take turns: in each round, each one runs every case. Figures cover the
calls of all rounds. Ratios are medians of the ratios between a round's medians. p95 is given from
20 calls on, p99 from 100.

With --text, real sequences add two results: cases with a mix of their lengths, and the share of
masked tokens at which a backend's top-1 prediction equals that of PyTorch in fp32.
The last line of standard output is JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from benchmarks.harness.cli import count, user_errors
from benchmarks.inference.backends import BACKENDS

HEADS = ("encoder", "masked-lm", "classification")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--student", help="Hugging Face folder of the student (default: random weights in DistilBERT's size)"
    )
    parser.add_argument("--teacher", help="Hugging Face folder of the student's teacher, to measure it too")
    parser.add_argument(
        "--text",
        nargs="*",
        default=[],
        help="text, as for ds-distill prepare, to measure real sequence lengths and top-1 predictions of masked tokens",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        choices=HEADS,
        default=list(HEADS),
        help="heads to measure, the first at all lengths and the others at 128 tokens",
    )
    parser.add_argument(
        "--bodies",
        nargs="+",
        choices=BACKENDS,
        default=[],
        dest="backends",
        metavar="BACKEND",
        help=f"backends to measure: {', '.join(BACKENDS)} (default: all that run on this machine)",
    )
    parser.add_argument(
        "--batches", nargs="+", type=count, default=[1, 8, 32], help="sequences per call (default 1 8 32)"
    )
    parser.add_argument(
        "--lengths", nargs="+", type=count, default=[32, 128, 384], help="tokens per sequence (default 32 128 384)"
    )
    parser.add_argument(
        "--threads",
        nargs="+",
        type=count,
        default=[],
        help="CPU threads (default: all cores, and one thread for the encoder at batch 1)",
    )
    parser.add_argument("--rounds", type=count, default=5, help="rounds in which all rows take turns (default 5)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=0.6,
        help="seconds per case and round, for at least one call (default 0.6)",
    )
    parser.add_argument(
        "--patience", type=float, default=12, help="seconds in total after which a case is not repeated (default 12)"
    )
    parser.add_argument("--sequences", type=count, default=64, help="number of sequences of the text (default 64)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="measure only the encoder, at batches of 1 and 32 sequences of 128 tokens, on all cores in three rounds",
    )
    parser.add_argument("--work", type=Path, help="folder to keep the exported files in (default: they are deleted)")
    parser.add_argument("--report", type=Path, help="folder for inference.md, inference.html, inference.json and plots")
    parser.add_argument("--card", action="store_true", help="add the student's results to its README.md")
    return parser


def main() -> int:
    args = parser().parse_args()
    if args.quick:
        args.heads, args.batches, args.lengths, args.rounds = ["encoder"], [1, 32], [128], 3
    # The import is here because the rows' processes import this file too: those without torch must not pay its memory.
    from benchmarks.inference.suite import run

    work_folder = (
        contextlib.nullcontext(args.work)
        if args.work
        else tempfile.TemporaryDirectory(prefix="inference-", ignore_cleanup_errors=True)
    )
    with work_folder as scratch, user_errors("benchmarks.inference"):
        return run(args, Path(scratch))


if __name__ == "__main__":
    raise SystemExit(main())
