"""The part that every Python client shares.

It reads the client's job, answers each input of each check, and writes its results after every
check. A client is started as `python CLIENT.py JOB RESULT`. It imports nothing of this project,
whose environment it does not have.
"""

import importlib.metadata
import json
import sys
import traceback
from pathlib import Path


def run_checks(load, packages):
    """Answer all inputs of all checks.

    Args:
        load: A function from a check to a function from an input to views of its answer. A check
            has "export", "format", "task", "pairs" and "folder". An input has "text", maybe "pair",
            and PyTorch's "ids" and "type_ids".
        packages: Distributions whose versions are reported.
    """
    job, result = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    report = {"versions": {name: importlib.metadata.version(name) for name in packages}, "checks": []}
    for check in job["checks"]:
        row = {"export": check["export"], "format": check["format"], "answers": {}, "errors": {}, "notes": []}
        check["notes"] = row["notes"]
        print(f"{check['export']}, {check['format']}", file=sys.stderr, flush=True)
        try:
            answer = load(check)
        except Exception as error:
            row["errors"] = dict.fromkeys(check["inputs"], _said(error))
        else:
            for name, given in check["inputs"].items():
                try:
                    row["answers"][name] = answer(given)
                except Exception as error:
                    row["errors"][name] = _said(error)
        report["checks"].append(row)
        result.write_text(json.dumps(report), encoding="utf-8")


def numbers(values):
    """Return an array or tensor, or a sequence of them, as one flat list."""
    if isinstance(values, (list, tuple)):
        return [number for value in values for number in numbers(value)]
    return [float(value) for value in values.reshape(-1).tolist()]


def call(tokenizer, given, **options):
    """Return a tokenizer's output for one or two texts, cut where the folder's tokenizer requires it."""
    texts = (given["text"], given["pair"]) if "pair" in given else (given["text"],)
    return tokenizer(*texts, truncation=True, **options)


def _said(error):
    traceback.print_exc()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:300]
