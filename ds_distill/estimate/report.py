"""A plan as text for a person."""

from __future__ import annotations

import textwrap

from ds_distill.reporting.tables import aligned
from ds_distill.utils.articles import counted

WIDTH = 80
_PARTS = ("weights", "gradients", "optimizer", "buffers", "teacher", "activations", "loss", "process", "peak")
_UNKNOWN = "unknown; give training.max_tokens, --tokens or a size as --corpus 3MB (files are not read)"


def format_plan(estimate: dict) -> str:
    """Return what `estimate` prints of a plan: the sentence, its figures, memory, and what to expect of the student."""
    price = estimate["price_per_device_hour"]
    need = next(row["peak"] for row in estimate["stages"] if row["recipe"])
    facts = {
        "teacher": f"{estimate['teacher_parameters']:,} parameters",
        "student": f"{estimate['student_parameters']:,} parameters",
        "work": f"{estimate['mflops_per_token']:,} MFLOP per token",
        "step": f"{estimate['tokens_per_step']:,} tokens",
        "corpus": f"{estimate['corpus']['tokens']:,} tokens per epoch" if estimate["corpus"] else None,
        "run": f"{estimate['tokens']:,} tokens, {estimate['steps']:,} steps" if estimate["tokens"] else _UNKNOWN,
        **{f"stage {number}": text for number, text in enumerate(estimate["run_stages"], 1)},
        "rate": (
            f"{estimate['tokens_per_second']:,} tokens/s on {counted(estimate['ranks'], 'rank')}, "
            f"{estimate['tflops_needed']} TFLOP/s ({estimate['rate_kind']})"
        ),
        "time": _UNKNOWN if estimate["hours"] is None else f"{estimate['hours']:,} hours",
        "price": None if price is None else f"${price:.2f} per device and hour ({estimate['price_is']})",
        "cost": None if estimate["dollars"] is None else f"${estimate['dollars']:,.2f}",
        "memory": (
            f"{need:.1f} of {estimate['memory_gib']} GiB per rank, {estimate['gpu'] or estimate['device']}, "
            f"{estimate['precision']}: {estimate['advice']}"
        ),
    }
    shown = {key: value for key, value in facts.items() if value is not None}
    sources = [f"rate: {estimate['rate_is']}"]
    if estimate["corpus"] and estimate["corpus"]["title"]:
        sources.append(f"corpus: {estimate['corpus']['source']}")
    return "\n\n".join(
        [
            textwrap.fill(estimate["sentence"], WIDTH),
            _facts(shown),
            _memory(estimate["stages"]),
            *([_scaling(estimate["scaling"])] if estimate["scaling"] else []),
            "What to expect of the student\n" + _bullets(_expectations(estimate["expected_student"])),
            "Where the figures come from\n" + _bullets([*sources, *estimate["notes"]]),
        ]
    )


def _facts(facts: dict[str, str]) -> str:
    """Return facts behind their names, in lines that a narrow terminal shows."""
    indent = 2 + max(map(len, facts))
    return "\n".join(
        textwrap.fill(f"{name:{indent}}{value}", WIDTH, subsequent_indent=" " * indent) for name, value in facts.items()
    )


def _memory(stages: list[dict]) -> str:
    """Return the memory of each ZeRO stage, a column each."""
    headings = [f"ZeRO stage {row['stage']}" for row in stages]
    cells = {part: [f"{row[part]:,.3f}" for row in stages] for part in _PARTS} | {
        "fits": [row["fits"] for row in stages]
    }
    rows = [("GiB per rank", *headings)]
    rows += [(name, *map(str.rjust, values, map(len, headings))) for name, values in cells.items()]
    (recipe,) = (row["stage"] for row in stages if row["recipe"])
    peak = "Estimated; the peak is the most in use at one time, which can be less than the sum."
    return aligned(rows) + "\n\n" + textwrap.fill(f"{peak} The recipe has stage {recipe}.", WIDTH)


def _scaling(scaling: dict) -> str:
    """Return where more devices stop paying: a table and a sentence."""
    known = scaling["rows"][0]["hours"] is not None  # else the length of the run is unknown
    rows = [("devices", "compute ms", "network ms", "tokens/s", "of linear", *(["hours"] if known else []))]
    for row in scaling["rows"]:
        milliseconds = (f"{row[key]:,.1f}" for key in ("compute_ms", "communication_ms"))
        rate, share = f"{row['tokens_per_second']:,.0f}", f"{row['share']:.0%}"
        rows.append((f"{row['devices']:,}", *milliseconds, rate, share, *([f"{row['hours']:,.1f}"] if known else [])))
    network = (
        f"A step on more devices, each of which sends {scaling['network_gb_per_second']:g} GB/s "
        f"({scaling['network_is']}; --network), without overlap of computation and communication"
    )
    return "\n\n".join([textwrap.fill(network, WIDTH), aligned(rows), textwrap.fill(scaling["verdict"], WIDTH)])


def _bullets(lines: list[str]) -> str:
    return "\n".join(textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ") for line in lines)


def _expectations(student: dict) -> list[str]:
    disk, latency, retention = student["disk_mb"], student["latency"], student["retention"]
    speed = (
        f"speed: {latency['operations_ratio']:g} × fewer operations per token than the teacher, heads aside; "
        "its latency was not measured at this shape"
    )
    if latency["times_as_fast_fp32"]:
        speed = "speed on two CPU cores, measured at this shape: {:g} to {:g} × the teacher's in fp32".format(
            *latency["times_as_fast_fp32"]
        )
        if latency["times_as_fast_int8"]:
            speed += "; in OpenVINO int8 {:g} to {:g} × the teacher's in fp32".format(*latency["times_as_fast_int8"])
        speed += f" ({latency['source']})"
    quality = (
        "quality: unknown; neither a study of this project nor the paper has a teacher and a student of these shapes"
    )
    if retention:
        quality = (
            f"quality: {retention['share_of_teachers_score']:.1%} of the teacher's score, {retention['basis']} for "
            f"these shapes: {retention['what']} ({retention['source']}); other text or another recipe may keep more "
            "or less"
        )
    return [
        f"size: {student['parameters']:,} parameters; about {disk['fp32']:,} MB in fp32, {disk['fp16']:,} MB in fp16, "
        f"{disk['int8']:,} MB in int8",
        speed,
        quality,
    ]
