"""What the demo shows at its end: a table, the models' answers, where everything lies, and what to type next."""

import shlex
import textwrap
from pathlib import Path

from ds_distill.demo.comparison import PROMPTS
from ds_distill.reporting.closing import as_typed, format_commands
from ds_distill.reporting.tables import aligned

LEAD = """A student of half its teacher's layers was distilled on the documentation of this machine's Python packages, \
and the same student was trained on the same batches without a teacher. Loss and accuracy count predictions at [MASK] \
in paragraphs that none of the models has read."""
HEADINGS = ("model", "size", "ms", "loss", "top-1 accuracy", "kept")


def show(summary: dict, output: Path) -> None:
    """Print the demo's result for people, at most 80 columns wide."""
    rows = summary["rows"]
    print(f"\n{aligned([HEADINGS, *map(_cells, rows)])}\n")
    note = (
        f"Loss (nats) and accuracy count {rows[1]['mask_count']:,} predictions at [MASK] in held-out text; ± is one "
        f"standard error. Size: parameters. ms: {latency_of(rows)}. Kept: the share of the teacher's accuracy."
    )
    print(f"{textwrap.fill(note, 79)}\n")
    if ahead := lead_sentence(summary):
        print(f"{textwrap.fill(ahead, 79)}\n")
    for row in summary["prompts"]:
        print(row["prompt"])
        names = [name for name in row if name != "prompt"]
        print(aligned([("", name, _answers(row[name])) for name in names]) + "\n")
    print(format_places(output) + "\n")
    print(format_commands(next_commands(output)) + "\n")


PLACES = (
    ("report", "report.html"),
    ("student", "distilled/export"),
    ("loss plot", "distilled/loss.png"),
    ("checkpoints", "distilled/checkpoints"),
    ("TensorBoard", "distilled/tensorboard"),
)


def latency_of(rows: list[dict]) -> str:
    """Return what the rows' latency is of."""
    return f"one forward of 1 × {rows[1]['latency_tokens']} tokens in fp32 on this machine's CPU"


def lead_sentence(summary: dict) -> str:
    """Return how far the distilled student is ahead; an empty text where too few guesses tell."""
    lead, error = summary["distilled_ahead_accuracy"], summary["distilled_ahead_accuracy_se"]
    if not error:
        return ""
    where = "ahead of" if lead >= 0 else "behind"
    return (
        f"At the same positions, the distilled student is {100 * abs(lead):.1f} ± {100 * error:.1f} points of accuracy "
        f"{where} the one without a teacher, which is {abs(lead) / error:.1f} standard errors."
    )


def format_places(output: Path) -> str:
    """Return where the demo's files lie, without those that its recipe does not make."""
    return aligned([(f"{label}:", str(output / path)) for label, path in PLACES if (output / path).exists()])


def next_commands(output: Path) -> list[tuple[str, str]]:
    """Return commands to type after the demo, each with a remark; they work in the order given."""
    export = str(output / "distilled" / "export")
    student = shlex.quote(export)
    ask = f"from transformers import pipeline; print(pipeline('fill-mask', {export!r})({PROMPTS[0]!r})[0])"
    # double quotes are easier to read, where the folder's name needs no quotes of its own
    ask = f'"{ask}"' if student == export else shlex.quote(ask)
    return [
        ("ask the student", f"python -c {ask}"),
        *as_typed(
            "make it a fast int8 model",
            ["export", "--model", export, "--format", "onnx-int8", "--output", output / "onnx"],
        ),
        *as_typed(
            "what distilling BERT-base would take on a GPU",
            ["estimate", "--config", "distilbert_base", "--gpu", "h100"],
        ),
    ]


def _cells(row: dict) -> tuple[str, ...]:
    return (
        row["model"],
        _or_dash(row["parameters"], lambda count: f"{count / 1e6:.1f} M"),
        _or_dash(row["latency_ms"], lambda time: f"{time:.1f}"),
        _or_dash(row["mask_loss"], lambda loss: f"{loss:.2f} ± {row['mask_loss_se']:.2f}"),
        _or_dash(row["mask_accuracy"], lambda share: f"{share:.1%} ± {100 * row['mask_accuracy_se']:.1f}"),
        _or_dash(row["kept"], lambda share: f"{share:.0%}"),
    )


def _or_dash(value: float | None, text) -> str:
    return "–" if value is None else text(value)


def _answers(choices: list[tuple[str, float]]) -> str:
    return ", ".join(f"{token} {probability:.0%}" for token, probability in choices)
