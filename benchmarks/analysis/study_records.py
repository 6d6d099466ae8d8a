"""Copy the records of a study, from which its report can be made again, without models, texts or checkpoints.

    python -m benchmarks.analysis.study_records STUDY --output docs/results/studies/NAME
    ds-distill report docs/results/studies/NAME

The records are the plan, each run's settings, scores and curves, and how each model did on each example of a dev set,
which the paired comparisons need: some 20 KB per fine-tuning. Of paths of this machine they keep the last name.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

from benchmarks.harness.cli import user_errors
from ds_distill.tasks.dev_outputs import FILE as DEV_OUTPUTS
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json

KEPT = [
    "study.json",
    *(f"students/*/{name}.json" for name in ("summary", "run", "record", "curves")),
    *(f"tasks/*/*/{name}.json" for name in ("summary", "run", "record")),
    "tasks/*/*/seed=*/result.json",
    f"tasks/*/*/seed=*/{DEV_OUTPUTS}",
]
PATH = re.compile(r"""(?<![^\s'"=,\[(])/[^\s'",\])]*""")  # an absolute path, also within a command
END = r"""(?=[/\s'",\])]|$)"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.analysis.study_records",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="the --output folder of ds-distill study")
    parser.add_argument("--output", required=True, type=Path, help="folder to write; it must not exist")
    options = parser.parse_args()
    with user_errors("benchmarks.analysis.study_records"):
        copy_records(options.study, options.output)
    return 0


def copy_records(study: Path, output: Path) -> None:
    """Copy what a study's report reads.

    Raises:
        UserError: The folder is not a study's, or the output exists.
    """
    if not (study / "study.json").is_file():
        raise UserError(f"{study}: has no study.json; give the --output folder of ds-distill study")
    if output.exists():
        raise UserError(f"--output {output}: exists; choose another, or remove it first")
    for pattern in KEPT:
        for file in sorted(study.glob(pattern)):
            copy = output / file.relative_to(study)
            copy.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".json":
                write_json(copy, without_paths(json.loads(file.read_text(encoding="utf-8")), study))
            else:
                shutil.copyfile(file, copy)


def without_paths(content: Any, study: Path) -> Any:
    """Return what a JSON file holds, with STUDY for the study's folder and the last name of other absolute paths."""
    if isinstance(content, dict):
        return {without_paths(key, study): without_paths(value, study) for key, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value, study) for value in content]
    if not isinstance(content, str):
        return content
    own = re.compile(re.escape(str(study.resolve())) + END)
    return PATH.sub(lambda path: Path(path.group()).name, own.sub("STUDY", content))


if __name__ == "__main__":
    raise SystemExit(main())
