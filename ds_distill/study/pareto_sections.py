"""The sections of a report on what to take: score against time and size, one section per runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ds_distill.reporting.pages import Section
from ds_distill.reporting.scatter import Point, Scatter, get_frontier, write_scatter_png
from ds_distill.study.bootstrap import CONFIDENCE
from ds_distill.study.figures import NOT_MEASURED
from ds_distill.study.pareto_points import Combination, Combinations, ParetoFile, combine
from ds_distill.study.variants import TEACHER
from ds_distill.utils.articles import counted
from ds_distill.utils.errors import UserError

HOLLOW = "hollow: scored in PyTorch"
READING = (
    "Each point is a model in one arithmetic of this runtime, with its number in the table. The line is the frontier: "
    f"the best point for each budget. Bars are {100 * CONFIDENCE:.0f} % intervals."
)
UNCERTAIN = (
    "The score of a hollow point is that of the model in PyTorch, not of the quantized file, so it is no part of the "
    "frontier; `--score-files` of `python -m benchmarks.inference.pareto` scores the files themselves."
)


def make_pareto_sections(folder: Path, studies: Sequence[Path], pictures: Path) -> list[Section]:
    """Return the sections on the measurements in a folder, and write their pictures.

    Args:
        folder: The --output folder of benchmarks.inference.pareto.
        studies: The folders of the studies in the report, from which the scores come.
        pictures: The folder for the pictures.

    Raises:
        UserError: If nothing was measured, or no model of the studies.
    """
    results, sections = ParetoFile.read(folder), []
    if not results.turns:
        raise UserError(f"{folder}: nothing is measured yet; start benchmarks.inference.pareto again, which resumes")
    measured = {entry["study"] for entry in results.models}
    names = [study for study in studies if study.resolve().name in measured or None in measured]
    for study in names:
        combinations = combine(results, folder, study)
        notes = _make_notes(results, combinations)  # of all runtimes, after the first one's table
        for runtime in dict.fromkeys(about["runtime"] for about in results.backends.values()):
            shown = [one for one in combinations.all if one.runtime == runtime]
            if shown:
                suffix = f", {study.resolve().name}" if len(names) > 1 else ""
                heading = f"Score against time and size: {runtime}{suffix}"
                sections.append(_make_section(heading, results, combinations, shown, pictures))
                sections[-1].notes, notes = notes, ""
    if not sections:
        needed = ", ".join(sorted(name for name in measured if name)) or "the study"
        raise UserError(
            f"{folder}: holds times and sizes, but no scores; give the folder of the study as well ({needed})"
        )
    return sections


def _make_section(
    heading: str, results: ParetoFile, combinations: Combinations, shown: list[Combination], pictures: Path
) -> Section:
    scatters = _make_scatters(results, combinations, shown)
    frontiers = {name: {point.number for point in get_frontier(scatter.points)} for name, scatter in scatters.items()}
    lines = []
    for number, one in enumerate(shown, 1):
        line = {"point": f"{one.model}, {one.precision}", "number": str(number)}
        for shape, milliseconds in one.milliseconds.items():
            low, high = one.rounds[shape]
            line[shape] = f"{_short(milliseconds)} ({_short(low)}–{_short(high)})"
            line[f"{shape} speed-up"] = f"{one.speedups[shape]:.2f}" if shape in one.speedups else NOT_MEASURED
        line["size"] = _short(one.megabytes)
        line["worth"] = _format_worth(combinations, one)
        line["scored"] = "this file" if one.is_own else "PyTorch"
        line["frontier"] = ", ".join(name for name, numbers in frontiers.items() if number in numbers) or NOT_MEASURED
        lines.append(line)
    columns = {"point": "model", "number": "no."}
    for shape in results.shapes:
        columns |= {shape: f"ms, {shape}", f"{shape} speed-up": "speed-up"}
    columns |= {"size": "MB", "worth": _name_worth(combinations), "scored": "scored in", "frontier": "on the frontier"}
    files = {}
    for name, scatter in scatters.items():
        file = pictures / f"pareto_{_file_name(heading)}_{_file_name(name)}.png"
        write_scatter_png(scatter, file)
        files[scatter.title] = file
    return Section(
        heading,
        READING,
        lines,
        columns,
        tuple(i for i in range(len(lines)) if any(i + 1 in numbers for numbers in frontiers.values())),
        files,
        list(scatters.values()),
        plots_first=True,
    )


def _make_scatters(results: ParetoFile, combinations: Combinations, shown: list[Combination]) -> dict[str, Scatter]:
    """Return the plots that have points, by what they call their costs in the table."""
    kinds = list(dict.fromkeys(about["precision"] for about in results.backends.values()))
    costs = {
        shape: (f"{shape} tokens", f"milliseconds per call, {_count_threads(results)}") for shape in results.shapes
    }
    costs["size"] = ("File size", "megabytes")
    scatters = {}
    for name, (title, across) in costs.items():
        points = []
        for number, one in enumerate(shown, 1):
            cost = one.megabytes if name == "size" else one.milliseconds.get(name)
            if one.worth is None or cost is None:
                continue
            is_reference = combinations.is_share and one.model == TEACHER and one.worth.low == one.worth.high
            low, high = (None, None) if is_reference else (one.worth.low, one.worth.high)
            points.append(Point(number, one.model, one.precision, cost, one.worth.value, low, high, one.certain))
        if points:
            level = 100.0 if combinations.is_share else None
            scatters[name] = Scatter(
                title, across, _name_worth(combinations), points, kinds, level, "teacher in PyTorch", HOLLOW
            )
    return scatters


def _make_notes(results: ParetoFile, combinations: Combinations) -> str:
    turns = Counter((turn["measured"], turn["backend"], turn["shape"]) for turn in results.turns)
    paragraphs = [
        f"Times: one call of the encoder without a head, {' or '.join(results.shapes)} tokens (sequences × length), "
        f"{_count_threads(results)}, {results.machine}, {results.date}; medians of up to {max(turns.values())} rounds "
        "in which the models take turns, with the fastest and the slowest round in parentheses. A speed-up is against "
        "the teacher in fp32 in the same runtime. MB: the encoder's exported file, or its weights where there is none.",
        "Intervals are those of the paired comparisons. Where those of two points overlap widely, the cheaper one is "
        "the safe choice.",
    ]
    if not all(one.certain for one in combinations.all):
        paragraphs.append(UNCERTAIN)
    if combinations.alike:
        same = "; ".join(f"{', '.join(others)} as {model}" for model, others in combinations.alike.items())
        paragraphs.append(
            "Models whose weights have the same shapes take the same time and space, and were measured once: "
            f"{same}. They are drawn side by side."
        )
    if not combinations.is_share:
        paragraphs.append("The study has no scores of the teacher, so scores are not shown as shares of its mean.")
    if missing := sorted({one.model for one in combinations.all if one.worth is None}):
        paragraphs.append(f"Not drawn, because not all tasks were run or can be compared: {', '.join(missing)}.")
    return "\n\n".join(paragraphs)


def _name_worth(combinations: Combinations) -> str:
    tasks = combinations.tasks
    what = f"mean of {', '.join(tasks)}" if len(tasks) > 1 else f"{''.join(tasks)} score"
    return f"share of the teacher's {what} (%)" if combinations.is_share else f"{what} (%)"


def _format_worth(combinations: Combinations, one: Combination) -> str:
    if one.worth is None:
        return NOT_MEASURED
    value, low, high = one.worth
    return f"{value:.1f}" if low == high else f"{value:.1f} ({low:.1f}–{high:.1f})"


def _count_threads(results: ParetoFile) -> str:
    return counted(results.threads, "thread")


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text.removeprefix("Score against time and size: "))
