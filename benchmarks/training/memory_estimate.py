"""Compare the memory that `ds-distill estimate` estimates with the memory that a run then takes.

    python -m benchmarks.training.memory_estimate
        a 6 × 384 teacher with 30,522 pieces, several batches and ZeRO stages
    python -m benchmarks.training.memory_estimate --hidden 768 --layers 12 --cases 16x1x0 8x2x2

A case is micro-batch × ranks × ZeRO stage, at a global batch of 32 sequences of 128 tokens. Each
case is planned and then run for --steps steps, with random weights on a small text. The run's
figure is the most memory that its first rank held. The output also shows the shares of the run's
time that it spent waiting for batches and writing logs. The last line of standard output is JSON.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from benchmarks.harness.cli import count, user_errors, why_it_ended
from ds_distill.utils.console import spinner
from ds_distill.utils.errors import UserError

ROOT = Path(__file__).parents[2]


def run_command(*words, ranks: int = 1) -> dict:
    """Return the JSON that a command prints last; with several ranks, launch.sh starts the command."""
    environment = os.environ | {
        "DS_DISTILL_PYTHON": sys.executable,
        "DS_DISTILL_RANKS": str(ranks),
        "PYTHONPATH": str(ROOT),
    }
    start = [sys.executable, "-m", "ds_distill", *words] if ranks == 1 else [str(ROOT / "launch.sh"), *words[1:]]
    done = subprocess.run(
        list(map(str, start)),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise UserError(f"{words[0]} failed: {why_it_ended(done.returncode, done.stderr)}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.memory_estimate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--layers", type=count, default=6, help="number of layers of the teacher (default 6)")
    parser.add_argument("--hidden", type=count, default=384, help="hidden size (default 384)")
    parser.add_argument("--heads", type=count, default=12, help="number of attention heads (default 12)")
    parser.add_argument("--vocabulary", type=count, default=30_522, help="vocabulary size (default 30522)")
    parser.add_argument("--steps", type=count, default=6, help="steps per run (default 6)")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=["16x1x0", "32x1x0", "4x1x0", "16x1x1", "16x1x2", "16x1x3", "8x2x0", "8x2x2"],
        help="cases to run, each micro-batch × ranks × ZeRO stage (see above)",
    )
    args = parser.parse_args()
    if odd := [case for case in args.cases if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[0-3]", case)]:
        parser.error(f"--cases {odd[0]}: must be micro-batch, ranks and ZeRO stage, such as 16x1x2")
    with user_errors("benchmarks.training.memory_estimate"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        teacher, text = Path(folder, "teacher"), Path(folder, "text.txt")
        config = BertConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.hidden,
            num_hidden_layers=args.layers,
            num_attention_heads=args.heads,
            intermediate_size=4 * args.hidden,
        )
        BertForMaskedLM(config).save_pretrained(teacher)
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(args.vocabulary - 5))]
        BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(teacher)
        draw = random.Random(0)
        text.write_text("\n\n".join(" ".join(draw.choices(words[5:], k=200)) for _ in range(400)), encoding="utf-8")
        print(
            "| micro-batch | ranks | ZeRO stage | estimated (GiB) | measured (GiB) | error | "
            "waiting for batches | logging |\n" + "|---" * 8 + "|"
        )
        for case in args.cases:
            micro, ranks, stage = map(int, case.split("x"))
            options = [
                "--teacher",
                teacher,
                "--training.micro_batch_size",
                micro,
                "--training.global_batch_size",
                32,
                "--data.sequence_length",
                128,
                "--training.max_tokens",
                args.steps * 32 * 128,
                "--training.eval_max_sequences",
                8,
            ]
            options += ["--training.deepspeed", ROOT / "ds_configs" / "deepspeed" / f"zero{stage}.json"]
            with spinner(case):
                parts = run_command("estimate", *options, "--ranks", ranks, "--tokens_per_second", 1)["stages"][stage]
                result = run_command("distill", *options, "--corpus", text, "--output", Path(folder, case), ranks=ranks)
            estimated = parts["peak"]
            taken, shares = (
                result["peak_memory_gib"],
                {key: round(result[key], 5) for key in ("data_wait_share", "logging_share")},
            )
            error = round(estimated / taken - 1, 3)
            rows.append(
                {"case": case, "estimated_gib": round(estimated, 3), "taken_gib": round(taken, 3), "error": error}
                | shares
                | {"estimated": {key: round(value, 3) for key, value in parts.items() if isinstance(value, float)}}
            )
            print(
                f"| {micro} | {ranks} | {stage} | {estimated:.2f} | {taken:.2f} | {error:+.1%} | "
                f"{shares['data_wait_share']:.2%} | {shares['logging_share']:.2%} |"
            )
    worst = max(rows, key=lambda row: abs(row["error"]))
    print(f"\nlargest error: {worst['error']:+.1%} ({worst['case']})")
    print(json.dumps({"rows": rows, "largest_error": worst["error"]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
