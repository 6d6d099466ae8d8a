"""What a command prints at its end for a person: its result, where the files are, and what to type next."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds_distill.reporting.heldout import (
    FEW_GUESSES,
    POSITIONS,
    heldout_cells,
    matched_terms,
    shared_kind,
    term_cell,
)
from ds_distill.reporting.run_text import millions
from ds_distill.reporting.tables import aligned
from ds_distill.utils import shell

KNOWS_LITTLE = 0.1  # of the words at [MASK]; a share of less says little

Command = tuple[str, Sequence[object]]  # a remark, and the words after ds-distill


def format_closing(*parts: str, commands: Iterable[Command] = ()) -> str:
    """Return blocks of text, then the commands to type next, with a blank line before each."""
    typed = [entry for remark, words in commands for entry in as_typed(remark, words)]
    blocks = [part for part in (*parts, format_commands(typed)) if part]
    return "".join(f"\n{block}\n" for block in blocks).rstrip("\n")


def format_commands(commands: Sequence[tuple[str, str]]) -> str:
    """Return commands for a shell, each below its remark; first the one that activates the environment, if needed.

    Args:
        commands: Pairs of a remark and a command.
    """
    folder = Path(sys.prefix) / "bin"
    activate, found = folder / "activate", shutil.which("ds-distill", path=shell.PATH)
    remarks = list(commands)
    if commands and activate.is_file() and (found is None or Path(found).parent != folder):
        shown = os.path.relpath(activate) if activate.is_relative_to(Path.cwd()) else activate
        remarks.insert(0, ("use the environment of this program", f"source {shlex.quote(str(shown))}"))
    return "\n\n".join(["Next:", *(f"# {remark}\n{command}" for remark, command in remarks)]) if remarks else ""


def as_typed(remark: str, words: Sequence[object]) -> list[tuple[str, str]]:
    """Return a remark and a command of this program; for `export`, after the one that installs what it needs."""
    install = ("install what exports to ONNX need, once", "pip install 'ds-distill[deploy]'")
    lacks = words[0] == "export" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime")))
    return [*([install] if lacks else []), (remark, join(words))]


def join(words: Sequence[object]) -> str:
    """Return a command of this program as a shell takes it, in lines of 80 columns where its words allow it."""
    lines, line = [], "ds-distill"
    for part in re.split(r" (?=--)", shlex.join(map(str, words))):  # an option stays beside its values
        if len(line) + len(part) > 77:
            lines.append(line)
            line = "   "
        line += f" {part}"
    return " \\\n".join([*lines, line])


def training_result(summary: Mapping[str, Any], output: str) -> tuple[str, str]:
    """Return the table and the facts of a finished distillation or pretraining.

    Args:
        summary: The run's summary.
        output: The run's folder.
    """
    rows = {
        "held-out text, at start": heldout_cells(summary, "start_heldout_"),
        "held-out text, at end": heldout_cells(summary, "heldout_"),
        **(
            {"the teacher": heldout_cells(summary, "teacher_heldout_")}
            if "teacher_heldout_mask_loss" in summary
            else {}
        ),
        **{f"{name}, at end": heldout_cells(figures) for name, figures in summary.get("heldout_sets", {}).items()},
    }
    files = ["summary.json", "loss.png"]
    files += [name for name in ("tensorboard", "trackers") if Path(output, name).is_dir()]
    where = POSITIONS[shared_kind([summary], "heldout_")]
    table = aligned([(where, "loss (nats)", "accuracy"), *((name, *cells) for name, cells in rows.items())])
    if terms := matched_terms(summary, "heldout_"):
        table = aligned([("", *terms), *_rows_of_terms(summary, terms)])
    rate = summary.get("tokens_per_second")
    trained = f"{summary['steps']:,} steps, {millions(summary['tokens'])} tokens"
    facts = {
        **_kept(summary),
        "trained": trained + (f", {rate:,.0f} tokens per second" if rate else ""),
        "model": f"{summary['export']} ({millions(summary['parameters'])} parameters)",
        "files": f"{', '.join(files[:-1])} and {files[-1]} in {output}",
    }
    return table, aligned(facts.items())


def _rows_of_terms(summary: Mapping[str, Any], terms: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the rows of a bare encoder's held-out terms, at the start and at the end."""
    sets = [("held-out text, at start", "start_heldout_", summary), ("held-out text, at end", "heldout_", summary)]
    sets += [(f"{name}, at end", "", figures) for name, figures in summary.get("heldout_sets", {}).items()]
    return [(label, *(term_cell(row, term, prefix) for term in terms)) for label, prefix, row in sets]


def _kept(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return the fact of what a student keeps, if its run has measured that."""
    kept, guesses = summary.get("kept"), summary.get("heldout_mask_count") or 0
    if kept is None:
        return {}
    if guesses < FEW_GUESSES:
        return {"kept": f"{guesses} predictions are too few to tell"}
    own, teachers = (summary.get(f"{whose}heldout_mask_accuracy") or 0.0 for whose in ("", "teacher_"))
    errors = [summary.get(f"{whose}heldout_mask_accuracy_se") or 0.0 for whose in ("", "teacher_")]
    # both guess at the same words, which makes the true error smaller
    error = kept * sum((e / a) ** 2 for e, a in zip(errors, (own, teachers), strict=True) if a) ** 0.5
    remark = ""
    if teachers < KNOWS_LITTLE:
        remark = f"; this says little, because the teacher's accuracy is low on this text ({teachers:.1%})"
    elif own < (summary.get("start_heldout_mask_accuracy") or 0.0):
        remark = "; the student's accuracy is lower than at the start: train it on more tokens"
    return {"kept": f"{100 * kept:.1f} ± {100 * error:.1f} % of the teacher's accuracy{remark}"}


def sibling(output: str, name: str) -> str:
    """Return the folder beside `output` that a next command may write to."""
    path = Path(output)
    return str(path.with_name(f"{path.name}-{name}"))
