"""Measure how often exported files make the top-1 predictions of a reference model in fp32.

    python -m benchmarks.analysis.file_agreement --reference DIR --model DIR… --format onnx-int8 --text FILE

`ds-distill export` compares a file with its own model. A model that was trained to be rounded is another model than
before, and what matters then is whether its file does what the model did that it was trained from. The last line of
standard output is JSON.
"""

from __future__ import annotations

import argparse
import json
import math

from benchmarks.harness.cli import count, user_errors
from ds_distill.exporters.formats import FORMATS
from ds_distill.exporters.model import load_source
from ds_distill.exporters.parity import MARGIN_NATS, compare, text_batches, torch_runner
from ds_distill.reporting.tables import table
from ds_distill.utils.errors import UserError

SHARES = ("agreement", "clear_agreement")
COLUMNS = {
    "model": "model",
    "file": "file",
    "agreement": "top-1 agreement with the reference",
    "clear_agreement": f"where the reference leads by {MARGIN_NATS} nats",
    "loss": "loss (nats per masked token)",
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.file_agreement",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--reference", required=True, help="folder of the reference, with a masked-LM head")
    parser.add_argument("--model", required=True, nargs="+", help="folders that hold the files, with masked-LM heads")
    parser.add_argument("--format", required=True, nargs="+", choices=FORMATS, help="formats of the files")
    parser.add_argument(
        "--text", nargs="+", default=[], help="text, as for ds-distill prepare (default: the package's sample)"
    )
    parser.add_argument("--sequences", type=count, default=512, help="number of sequences of the text (default 512)")
    args = parser.parse_args()
    with user_errors("benchmarks.analysis.file_agreement"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    source = load_source(args.reference, "masked-lm", option="--reference")
    batches = text_batches(source, args.text, sequences=args.sequences)
    rows = []
    for model in args.model:
        own = load_source(model, "masked-lm")
        runs = {"PyTorch, fp32": torch_runner(own)}
        for name in args.format:
            if not (file := own.folder / FORMATS[name].file).is_file():
                raise UserError(f"--format {name}: {file} is missing; run ds-distill export first")
            runs[name] = FORMATS[name].load(file)
        for name, runner in runs.items():
            rows.append({"model": model, "file": name} | compare(source, runner, batches, f"{model}, {name}"))
    print(
        table(
            [row | {key: _share(row, key) for key in SHARES} | {"loss": f"{row['loss']:.4f}"} for row in rows], COLUMNS
        )
    )
    print(f"\nThe reference's own loss is {rows[0]['loss_pytorch']:.4f}. Shares have standard errors.\n")
    print(json.dumps({"reference": args.reference, "rows": rows}))
    return 0


def _share(row: dict, key: str) -> str | None:
    if key not in row:  # no prediction of the reference is clear
        return None
    share, number = row[key], row["clear_positions" if key.startswith("clear") else "positions"]
    return f"{100 * share:.2f} ± {100 * math.sqrt(share * (1 - share) / number):.2f} %"


if __name__ == "__main__":
    raise SystemExit(main())
