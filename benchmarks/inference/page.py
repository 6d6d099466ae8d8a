"""The output of benchmarks.inference: tables on the terminal, a page with plots, and the student's model card."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.inference.backends import BACKENDS
from ds_distill.reporting.card_edits import put_section
from ds_distill.reporting.pages import Section, write_page
from ds_distill.reporting.plots import bars_plot, points_plot
from ds_distill.reporting.tables import table
from ds_distill.utils.console import log
from ds_distill.utils.files import write_json

ONE, MANY = "1 × 128", "32 × 128"
FEW = 3  # a ratio of fewer rounds states their number: a row that is slow at a shape gets fewer turns there
COLUMNS = {
    "model": "model",
    "body": "backend",
    "p50_ms": "p50 (ms)",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "sequences_s": "sequences/s",
    "tokens_s": "tokens/s",
    "vs_base_eager": "× BERT-base, PyTorch fp32",
    "vs_base_onnx": "× BERT-base, ONNX Runtime fp32",
    "vs_base_same_body": "× BERT-base, same backend",
    "vs_teacher_same_body": "× teacher, same backend",
    "energy": "J per sequence",
}
SIZES = {
    "model": "model",
    "body": "backend",
    "parameters_m": "parameters (M)",
    "file_mb": "file (MB)",
    "load_s": "load and first call (s)",
    "peak_mb": "peak memory (MB)",
    "agreement": "top-1 agreement with PyTorch fp32",
    "clear": "agreement on clear ones",
}


def shown(entry: dict) -> dict:
    """Return an entry as a row of a table, with as many digits as are meaningful."""
    out = {"model": entry["model"], "body": BACKENDS[entry["body"]].label}
    for key in ("p50_ms", "p95_ms", "p99_ms", "sequences_s", "tokens_s", "file_mb", "peak_mb", "load_s"):
        value = entry.get(key)
        out[key] = (
            None
            if value is None
            else f"{value:,.0f}"
            if value >= 100
            else f"{value:.1f}"
            if value >= 10
            else f"{value:.2f}"
        )
    for key in ("vs_base_eager", "vs_base_onnx", "vs_base_same_body", "vs_teacher_same_body"):
        rounds = entry.get(f"{key}_rounds", FEW)
        out[key] = None if entry.get(key) is None else f"{entry[key]:.2f}" + (f" (of {rounds})" if rounds < FEW else "")
    joules = entry.get("joules_per_sequence")
    out["energy"] = "no counter" if joules is None else f"{joules:.3g}"
    out["parameters_m"] = f"{entry['parameters'] / 1e6:.1f}"
    for key, name in (("agreement", "agreement"), ("clear", "clear_agreement")):
        out[key] = None if name not in entry else f"{100 * entry[name]:.2f} %"
    return out


def counted(threads: int) -> str:
    """Return the number of threads in words."""
    return f"{threads} thread{'s' * (threads > 1)}"


def make_sections(result: dict, folder: Path | None) -> list[Section]:
    """Return the sections of the page; plots go to `folder`, if there is one."""
    rows = result["rows"]
    most = max(row["threads"] for row in rows)
    first, threads = rows[0]["head"], counted(most)
    wide = [row for row in rows if row["head"] == first and row["threads"] == most]
    sections = []
    for case in (ONE, MANY):
        here = [row for row in wide if row["case"] == case]
        if not here:
            continue
        section = _section(f"{first}, {case} tokens, {threads}", here)
        if folder:
            file = folder / f"latency_{case.split()[0]}.png"
            bars_plot(
                {label(row): row["p50_ms"] for row in here},
                f"p50 of a call of {case} tokens (ms)",
                file,
                marked=tuple(label(row) for row in here if row["model"] == "student"),
            )
            section.pictures = {f"Latency of {case} tokens. The student is blue.": file}
        sections.append(section)
    one = [row for row in wide if row["case"] == ONE] or [row for row in wide if row["case"] == wide[0]["case"]]
    text = (
        f"The {first} alone, {threads}. Peak memory is the host memory of the process, including libraries, "
        f"after calls of {one[0]['peak_case']} tokens."
    )
    columns = {key: name for key, name in SIZES.items() if key not in ("agreement", "clear")}
    sizes = Section("Size, memory, load time", text, [shown(row) for row in one], columns, _students(one))
    if folder:
        file = folder / "size_latency.png"
        points_plot(
            {label(row): (row["file_mb"], row["p50_ms"]) for row in one},
            "file (MB)",
            f"p50 of {one[0]['case']} tokens (ms)",
            file,
            marked=tuple(label(row) for row in one if row["model"] == "student"),
        )
        sizes.pictures = {"File size and latency. The student is blue.": file}
    sections.append(sizes)
    cases = [case for case in dict.fromkeys(row["case"] for row in wide) if "mix" not in case]
    sections.append(
        _shapes(f"{first}, every shape, {threads}", wide, cases, "p50 of a call in ms. Shapes are sequences × tokens.")
    )
    if alone := [row for row in rows if row["head"] == first and row["threads"] == 1 != most]:
        cases = [case for case in dict.fromkeys(row["case"] for row in alone) if "mix" not in case]
        sections.append(_shapes(f"{first}, one thread", alone, cases, "p50 of a call in ms."))
    for mix in dict.fromkeys(row["case"] for row in wide if "mix" in row["case"]):
        text = (
            "Sequences have the lengths of the text and are padded to the longest of their batch; "
            "the rates count only real tokens."
        )
        sections.append(
            _section(
                f"{first}, real lengths, {mix.split()[0]} at a time, {threads}",
                [r for r in wide if r["case"] == mix],
                text,
            )
        )
    for head in dict.fromkeys(row["head"] for row in rows if row["head"] != first):
        for case in (ONE, MANY):
            here = [row for row in rows if row["head"] == head and row["case"] == case and row["threads"] == most]
            if here:
                sections.append(_section(f"With a {head} head, {case} tokens, {threads}", here))
        agreeing = list(
            {(row["model"], row["body"]): row for row in rows if row["head"] == head and "agreement" in row}.values()
        )
        if agreeing:
            positions = agreeing[0]["positions"]
            text = (
                f"Share of the {positions:,} masked tokens of real text whose top-1 prediction is that of PyTorch in "
                f"fp32. Clear ones are those whose two best logits differ by at least {result['clear']} nats there. "
                "Files include the head."
            )
            columns = {key: SIZES[key] for key in ("model", "body", "file_mb", "agreement", "clear")}
            sections.append(
                Section(
                    f"{head}: top-1 agreement of each backend",
                    text,
                    [shown(row) for row in agreeing],
                    columns,
                    _students(agreeing),
                )
            )
    return sections


def label(row: dict) -> str:
    """Return the name of a row's model and backend."""
    return f"{row['model']}: {BACKENDS[row['body']].label}"


def _students(rows: list[dict]) -> tuple[int, ...]:
    return tuple(i for i, row in enumerate(rows) if row["model"] == "student")


def _section(heading: str, rows: list[dict], text: str = "") -> Section:
    lines = [shown(row) for row in rows]
    columns = {key: name for key, name in COLUMNS.items() if any(line.get(key) is not None for line in lines)}
    return Section(heading, text, lines, columns, _students(rows))


def _shapes(heading: str, rows: list[dict], cases: list[str], text: str) -> Section:
    lines: dict[tuple, dict] = {}
    for row in rows:
        line = lines.setdefault(
            (row["model"], row["body"]), {"model": row["model"], "body": BACKENDS[row["body"]].label}
        )
        line[row["case"]] = shown(row)["p50_ms"]
    marked = tuple(i for i, (model, _) in enumerate(lines) if model == "student")
    return Section(
        heading,
        text,
        list(lines.values()),
        {"model": "model", "body": "backend"} | {case: case for case in cases},
        marked,
    )


def print_tables(result: dict) -> None:
    """Print all tables to standard output."""
    for section in make_sections(result, None):
        print(f"\n{section.heading}\n\n{table(section.rows, section.columns)}")
    print()


def write_report(result: dict, folder: Path) -> None:
    """Write folder/inference.json, .md, .html and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    words = " ".join(word for word in sys.argv[1:] if word not in ("--report", str(folder)))
    lead = (
        f"Student: {result['student']}; teacher: {result['teacher'] or 'none'}; BERT-base: random weights. "
        f"{result['machine']}, {result['date']}. All rows of a table take turns for {result['rounds']} rounds; "
        "rows that are slow at a shape get fewer, and a ratio of fewer than three rounds states their number."
    )
    if result["not_measured_yet"]:
        lead += f" Not measured yet, or interrupted: {', '.join(result['not_measured_yet'])}."
    write_page(
        folder,
        "inference",
        "Inference",
        f"{lead}\n\n`python -m benchmarks.inference {words}`",
        make_sections(result, folder),
    )
    write_json(folder / "inference.json", result)


def write_card(result: dict, model: Path) -> None:
    """Write the section "Speed" of the student's README.md."""
    student_rows = [
        row for row in result["rows"] if row["model"] == "student" and row["head"] == "encoder" and row["case"] == ONE
    ]
    if not student_rows:
        log(f"--card: not written, because the student's encoder was not measured at {ONE} tokens")
        return
    most = max(row["threads"] for row in student_rows)
    rows = [shown(row) for row in student_rows if row["threads"] == most]
    columns = {
        key: (COLUMNS | SIZES)[key]
        for key in ("body", "p50_ms", "sequences_s", "vs_base_eager", "vs_base_same_body", "file_mb", "peak_mb")
    }
    text = (
        f"Without its head, one sequence of 128 tokens, {counted(most)}, {result['machine']}, {result['date']} "
        "(`python -m benchmarks.inference`). Peak memory is that of the process "
        f"after calls of {student_rows[0]['peak_case']} tokens."
    )
    put_section(model / "README.md", "Speed", f"{text}\n\n{table(rows, columns)}")
