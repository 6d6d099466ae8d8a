"""Write docs/reliability.md by running the tests that it lists, including the long ones.

    python -m tests.reliability                       runs everything (about forty minutes on two cores)
    python -m tests.reliability -k resume             passes further arguments to pytest; a part
    does not overwrite the page

A promise is the mark `@pytest.mark.promise("…")` of the tests that show it. What the tests count is
in their recorded properties.
"""

import datetime
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from benchmarks.harness.machine import describe

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
INTRODUCTION = """# What a run survives

Made by `python -m tests.reliability` on {date}: {machine}; {minutes:.0f} minutes. \
Each entry is a promise, what its tests counted in this run, and these tests. \
`./tests/run.sh` runs the quick part of them. \
All of it is DeepSpeed's real engine in real processes on CPUs, over gloo. The two hosts are
network namespaces with an sshd each; Slurm is a real one, with two nodes on one machine. Only the jobs of 64 and 512
ranks are simulated: they have no model. \
Nothing here has been run on GPUs. fp16's loss scale does not occur on CPUs.

"""


class Promises:
    """A pytest plugin that records the tests of each promise, their outcomes and what they counted."""

    def __init__(self):
        self.of_test: dict[str, list[str]] = {}
        self.tests: dict[str, dict[str, str]] = defaultdict(dict)  # promise → test → outcome
        self.counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        kept = []
        for item in items:
            promises = [mark.args[0] for mark in item.iter_markers("promise")]
            if promises or item.get_closest_marker("long"):  # nothing else runs these
                self.of_test[item.nodeid] = promises
                kept.append(item)
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self.of_test])
        items[:] = kept

    def pytest_runtest_logreport(self, report):
        if report.when != "call" and report.passed:
            return
        for promise in self.of_test[report.nodeid]:
            self.tests[promise][report.nodeid] = report.outcome
            counts = self.counts[promise]
            for key, value in report.user_properties if report.when == "call" else ():
                counts[key] = max(counts[key], value) if key.endswith("%") else counts[key] + value

    def rows(self) -> list[dict]:
        rows = []
        for promise, tests in self.tests.items():
            outcomes = list(tests.values())
            counts = [
                f"{len(outcomes)} case" + "s" * (len(outcomes) > 1),
                *(f"{key} {value:g}" for key, value in self.counts[promise].items()),
            ]
            worst = next((word for word in ("failed", "skipped") if word in outcomes), "passed")
            files = defaultdict(list)
            for file, test in sorted({tuple(name.split("[")[0].split("::")) for name in tests}):
                files[file].append(test.removeprefix("test_").replace("_", " "))
            places = "; ".join(f"`{file}`: {', '.join(names)}" for file, names in files.items())
            rows.append({"promise": promise, "tests": places, "counts": "; ".join(counts), "outcome": worst})
        return rows


def as_list(rows: list[dict]) -> str:
    """Return the promises as a Markdown list."""
    return "\n".join(
        f"- **{row['promise']}.** {row['outcome'].capitalize()}: {row['counts']}.\n  Shown by {row['tests']}."
        for row in rows
    )


def main() -> int:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        return 0
    promises, began = Promises(), datetime.datetime.now(datetime.UTC)
    code = pytest.main(["-m", "", "-p", "no:cacheprovider", *(sys.argv[1:] or ["-v"])], plugins=[promises])
    rows = promises.rows()
    text = as_list(rows)
    print(text)
    if sys.argv[1:] or code == pytest.ExitCode.INTERRUPTED:
        return int(code)
    minutes = (datetime.datetime.now(datetime.UTC) - began).total_seconds() / 60
    PAGE.write_text(
        INTRODUCTION.format(date=f"{began:%Y-%m-%d}", machine=describe(torch.device("cpu")), minutes=minutes)
        + text
        + "\n"
    )
    print(f"written to {PAGE}")
    return int(code)


if __name__ == "__main__":
    raise SystemExit(main())
