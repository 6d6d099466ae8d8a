"""Compare the student's latency, throughput, size and memory with its teacher's and BERT-base's.

    python -m benchmarks.inference
        BERT-base and DistilBERT sizes, random weights
    python -m benchmarks.inference --student DIR --teacher DIR --text FILE --report DIR
    python -m benchmarks.inference --quick
        batch 1 and 32 of 128 tokens, encoder only

Every model runs in every backend ("body": PyTorch, torch.compile, ONNX Runtime, OpenVINO; fp32,
bf16, int8). Each pair has a process of its own with the stated number of threads. The processes of
a group take turns: in each round, each one runs every case. Figures cover the calls of all rounds.
Ratios are medians of the ratios between a round's medians. p95 is given from 20 calls on, p99 from
100.

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
from benchmarks.inference.backends import BODIES

HEADS = ("encoder", "masked-lm", "classification")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.inference", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", help="Hugging Face folder (default: DistilBERT's size, random weights)")
    parser.add_argument("--teacher", help="Hugging Face folder of its teacher, measured too")
    parser.add_argument(
        "--text",
        nargs="*",
        default=[],
        help="text, as for ds-distill prepare: real lengths, and top-1 predictions of masked tokens",
    )
    parser.add_argument(
        "--heads",
        nargs="+",
        choices=HEADS,
        default=list(HEADS),
        help="the first over all lengths, the others at 128 tokens",
    )
    parser.add_argument(
        "--bodies",
        nargs="+",
        choices=BODIES,
        default=[],
        metavar="BODY",
        help=f"of {', '.join(BODIES)} (default: all that run here)",
    )
    parser.add_argument(
        "--batches", nargs="+", type=count, default=[1, 8, 32], help="sequences a call (default 1 8 32)"
    )
    parser.add_argument(
        "--lengths", nargs="+", type=count, default=[32, 128, 384], help="tokens per sequence (default 32 128 384)"
    )
    parser.add_argument(
        "--threads", nargs="+", type=count, default=[], help="default: one (encoder, batch 1 only) and all cores"
    )
    parser.add_argument("--rounds", type=count, default=5, help="turns of each row (default 5)")
    parser.add_argument("--seconds", type=float, default=0.6, help="of a case in a turn; once at least (default 0.6)")
    parser.add_argument(
        "--patience", type=float, default=12, help="seconds after which a case has had enough turns (default 12)"
    )
    parser.add_argument("--sequences", type=count, default=64, help="of the text (default 64)")
    parser.add_argument(
        "--quick", action="store_true", help="encoder only, batch 1 and 32 of 128 tokens, all cores, three rounds"
    )
    parser.add_argument("--work", type=Path, help="folder to keep the exported files in (default: gone afterwards)")
    parser.add_argument("--report", type=Path, help="folder for inference.md, inference.html, inference.json and plots")
    parser.add_argument("--card", action="store_true", help="write the student's figures into its README.md")
    return parser


def main() -> int:
    args = parser().parse_args()
    if args.quick:
        args.heads, args.batches, args.lengths, args.rounds = ["encoder"], [1, 32], [128], 3
    # The import is here because the rows' processes import this file too: those without torch must not pay its memory.
    from benchmarks.inference.suite import run

    own = (
        contextlib.nullcontext(args.work)
        if args.work
        else tempfile.TemporaryDirectory(prefix="inference-", ignore_cleanup_errors=True)
    )
    with own as scratch, user_errors("benchmarks.inference"):
        return run(args, Path(scratch))


if __name__ == "__main__":
    raise SystemExit(main())
