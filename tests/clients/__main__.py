"""Load every kind of export in the programs that users load them into, and compare their answers.

The exports are made by ds-distill's own commands from small teachers. Each client has an
environment of its own, from the package indexes of Python and npm. Environments, exports and
results are kept, so that a second call continues where the first one stopped, and a single client
can be run again. The exit status is 1 if an export cannot be made or a client's answers differ.
"""

import argparse
import datetime
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.harness.machine import describe
from tests.clients.catalog import CLIENTS, get_checks
from tests.clients.compare import PYTORCH, too_alike
from tests.clients.exports import EXPORTS, make_exports, product_stamp
from tests.clients.reference import write_reference
from tests.clients.report import failures, page_section, write_section
from tests.clients.runner import client_stamp, file_name, run_client

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ds-distill-clients"
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"


def parse(words: list[str]) -> argparse.Namespace:
    """Return the options; refuse names of clients that do not exist."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.clients", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "clients", nargs="*", metavar="CLIENT", help=f"which; all when none is named: {', '.join(map(repr, CLIENTS))}"
    )
    parser.add_argument(
        "--environments", type=Path, default=CACHE, help="folder for the environments (default: %(default)s)"
    )
    parser.add_argument(
        "--exports", type=Path, help="folder for the exports and results (default: in that of the environments)"
    )
    parser.add_argument("--again", action="store_true", help="run clients again whose results are there")
    parser.add_argument(
        "--table", type=Path, help=f"page to put the table into; {PAGE.name} of the documents when all clients are run"
    )
    options = parser.parse_args(words)
    if unknown := set(options.clients) - set(CLIENTS):
        parser.error(f"{', '.join(sorted(unknown))}: no such client (--help lists all)")
    return options


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(words: list[str]) -> int:
    options = parse(words)
    disable_progress_bar()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    clients = [client for name, client in CLIENTS.items() if not options.clients or name in options.clients]
    environments = options.environments.resolve()
    stamp = product_stamp()
    folder = _fresh((options.exports or environments / "exports").resolve(), stamp)
    needed = [
        name for name in EXPORTS if any(export.name == name for client in clients for export, _ in get_checks(client))
    ]
    made, unmade = make_exports(needed, folder, say)
    references = {}
    for name, output in made.items():
        export = EXPORTS[name]
        weights = (
            output if export.made_by != "encoder" else make_exports([export.source], folder, say)[0][export.source]
        )
        references[name] = write_reference(
            export, Path(output.folder), Path(weights.folder), folder / "references" / f"{name}.json"
        )
        if why := too_alike(references[name]["answers"][PYTORCH]):
            raise AssertionError(f"{name}: {why}: these would not show whether a client is right")
    rows = []
    for client in clients:
        kept = folder / "results" / f"{file_name(client)}.json"
        kept.parent.mkdir(exist_ok=True)
        mark = client_stamp(client, stamp)
        row = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() and not options.again else {}
        if row.get("stamp") != mark or row["not_run"] is not None:
            row = run_client(client, environments, made, references, kept.with_suffix(".log"), say) | {"stamp": mark}
            kept.write_text(json.dumps(row, indent=1), encoding="utf-8")
        rows.append(row)
        say(f"  {_outcome(row)}")
    head = f"Run on {datetime.date.today():%Y-%m-%d} with `python -m tests.clients`: {describe(torch.device('cpu'))}."
    refused = {name: output.refused for name, output in made.items() if output.refused}
    section = page_section(rows, unmade, refused, head)
    print(section)
    page = options.table or (None if options.clients else PAGE)
    if page:
        write_section(page, section)
        say(f"written to {page}")
    failed = failures(rows, unmade)
    for line in failed:
        say(f"FAILED: {line}")
    return 1 if failed else 0


def _fresh(folder: Path, stamp: str) -> Path:
    """Return `folder`, emptied if another state of the product made its exports; never empty anybody else's folder."""
    made_by = folder / "made-by.txt"
    if made_by.is_file() and made_by.read_text(encoding="utf-8") != stamp:
        say(f"{folder}: the product has changed since, its exports are made anew")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made_by.write_text(stamp, encoding="utf-8")
    return folder


def _outcome(row: dict) -> str:
    if row["not_run"] is not None:
        return f"not run: {row['not_run']}"
    counts = {
        status: sum(check["status"] == status for check in row["checks"]) for status in ("same", "failed", "limit")
    }
    return (
        f"{counts['same']} of {len(row['checks'])} the same, {counts['failed']} failed, "
        f"{counts['limit']} not possible, {row['seconds']} s"
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
