"""Compare runs side by side: their held-out losses over tokens in one plot, and a table.

    python -m benchmarks.analysis.compare_runs RUNS/distilled RUNS/no_teacher RUNS/random --output
    docs/results/first_evidence

A run is the --output folder of distill or pretrain, and the folder's name is its label. The
benchmark writes OUTPUT.png and OUTPUT_table.md. It counts, for each other run, at how many of the
common measurements the first run is ahead. The last line of standard output is JSON.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.harness.cli import make_folder, user_errors
from ds_distill.reporting.heldout import POSITIONS, errors_shown, shared_kind
from ds_distill.reporting.plots import comparison_plot
from ds_distill.reporting.tables import table
from ds_distill.training.state import read_heldout_curves
from ds_distill.utils.errors import UserError


def held_out(folder: Path) -> dict[str, list]:
    """Return, by name of the set, a run's rows {step, tokens, each held-out figure}."""
    try:
        return {name or "own": rows for name, rows in read_heldout_curves(folder).items()}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder} is not a finished run (curves.json: {error}); give the --output folder of distill or pretrain"
        ) from error


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.compare_runs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, help="folders of finished runs; the first is compared with each of the others"
    )
    parser.add_argument("--output", type=Path, required=True, help="path and first part of the output files' names")
    args = parser.parse_args()
    with user_errors("benchmarks.analysis.compare_runs"):
        return run(args)


def run(args: argparse.Namespace) -> int:
    runs = {folder.name: held_out(folder) for folder in args.runs}
    if len(runs) < len(args.runs):
        raise UserError(f"two folders have the same name ({', '.join(map(str, args.runs))}); rename one of them")
    make_folder("--output", args.output.parent)
    first, *others = runs
    rows, ahead = [], {}
    positions = shared_kind(curve[-1] for sets in runs.values() for curve in sets.values())
    loss, accuracy = f"{positions}_loss", f"{positions}_accuracy"
    for name, sets in runs.items():
        rows.append(
            {"run": name}
            | {
                f"{kind} {what}": value
                for kind, curve in sets.items()
                for what, value in (
                    ("start", curve[0].get(loss)),
                    ("start_se", curve[0].get(f"{loss}_se")),
                    ("end", curve[-1][loss]),
                    ("end_se", curve[-1].get(f"{loss}_se")),
                    ("accuracy", curve[-1][accuracy]),
                    ("accuracy_se", curve[-1].get(f"{accuracy}_se")),
                )
            }
        )
    for other in others:
        for kind in runs[first].keys() & runs[other].keys():
            first_losses, other_losses = (
                {row["step"]: row[loss] for row in runs[name][kind] if row.get(loss) is not None}
                for name in (first, other)
            )
            # Nothing has been learned before the first step.
            common = sorted((first_losses.keys() & other_losses.keys()) - {0})
            ahead[f"{other}, {kind}"] = [sum(first_losses[step] < other_losses[step] for step in common), len(common)]
    columns = {"run": "run"}
    for kind in runs[first]:
        columns |= {
            f"{kind} start": f"{kind}: loss at start",
            f"{kind} end": "at the end",
            f"{kind} accuracy": "accuracy",
        }
    text = (
        f"Held-out masked-LM loss in nats per position, and accuracy as a share, both {POSITIONS[positions]}.\n\n"
        + table([errors_shown(row) for row in rows], columns)
        + "\n\n"
        + "\n".join(
            f"- {first} ahead of {key}: at {won} of {count} measurements" for key, (won, count) in sorted(ahead.items())
        )
        + "\n"
    )
    print(text)
    print(json.dumps({"runs": rows, "ahead": ahead}), flush=True)
    Path(f"{args.output}_table.md").write_text(text, encoding="utf-8")
    comparison_plot(runs, Path(f"{args.output}.png"))
    print(f"written: {args.output}.png, {args.output}_table.md", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
