"""The table in the documentation, made from the clients' results."""

from __future__ import annotations

import re
from pathlib import Path

from ds_distill.reporting.tables import table
from tests.clients.catalog import CLIENTS

BEGIN, END = "<!-- clients: written by python -m tests.clients -->", "<!-- clients: end -->"
COLUMNS = {
    "client": "client",
    "way": "how it loads",
    "exports": "exports",
    "fp32": "largest difference, fp32",
    "int8": "int8",
    "int4": "int4",
    "outcome": "outcome",
}


def failures(rows: list[dict], unmade: dict[str, str]) -> list[str]:
    """Return one line for each failure: each export that could not be made, and each check that failed."""
    lines = [f"export {name}: {error}" for name, error in unmade.items()]
    for row in rows:
        failed: dict[str, list[str]] = {}
        for check in row["checks"]:
            if check["status"] == "failed":
                failed.setdefault(check["error"], []).append(f"{check['export']} ({check['format']})")
        lines += [f"{row['client']}: {', '.join(where)}: {error}" for error, where in failed.items()]
        if not row["checks"] and row["not_run"] is None:
            lines.append(f"{row['client']}: there was nothing to check")
    return lines


def get_bits(form: str) -> str:
    """Return the column of a format's differences: fp32, int8 or int4."""
    return next((bits for bits in ("int8", "int4") if form.endswith(bits)), "fp32")


def summarize(row: dict) -> dict[str, str]:
    """Return a client's row of the table."""
    client = CLIENTS[row["client"]]
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    line = {"client": f"{row['client']} ({versions})" if versions else row["client"], "way": client.way}
    if row["not_run"] is not None:
        return line | {"outcome": f"not run: {row['not_run']}"}
    same = [check for check in row["checks"] if check["status"] == "same"]
    line["exports"] = f"{len(same)} of {len(row['checks'])}"
    if client.script != "shipped_examples.py":
        for column in ("fp32", "int8", "int4"):
            if differences := [check["difference"] for check in same if get_bits(check["format"]) == column]:
                line[column] = f"{max(differences):.1e}" if column == "fp32" else f"{100 * max(differences):.1f} %"
    parts = ["the same" if len(same) == len(row["checks"]) else ""]
    for status, word in (("failed", "**failed**"), ("limit", "not possible")):
        reasons: dict[str, list[str]] = {}
        for check in row["checks"]:
            if check["status"] == status:
                reasons.setdefault(check["error"], []).append(f"{check['export']} {check['format']}")
        parts += [f"{word}: {', '.join(where)}: {_cell(why)}" for why, where in reasons.items()]
    notes = sorted({note for check in same for note in check["notes"]})
    return line | {"outcome": "; ".join(filter(None, [*parts, *notes]))}


def page_section(rows: list[dict], unmade: dict[str, str], refused: dict[str, dict[str, str]], head: str) -> str:
    """Return the text between the markers: where and when, the table, and the exports and formats that are missing.

    Args:
        rows: The clients' results.
        unmade: The error by name of the exports that could not be made.
        refused: The product's message by format that it refused, by the export's name.
        head: Where and when.
    """
    missing = [f"- The export `{name}` could not be made: {_cell(error)}" for name, error in unmade.items()]
    missing += [
        f"- `{name}` has no `{form}`, which `ds-distill export` refused: {_cell(why)}"
        for name, formats in refused.items()
        for form, why in formats.items()
    ]
    return "\n".join([head, "", table([summarize(row) for row in rows], COLUMNS), *([""] * bool(missing)), *missing])


def write_section(page: Path, text: str) -> None:
    """Put `text` between the markers of `page`.

    Raises:
        ValueError: The markers are missing.
    """
    before = page.read_text(encoding="utf-8")
    pattern = re.compile(re.escape(BEGIN) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(before):
        raise ValueError(f"{page}: lacks the lines {BEGIN} and {END}")
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n\n{text}\n\n{END}", before), encoding="utf-8")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
