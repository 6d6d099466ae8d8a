"""What to expect of a student: its size, and what this project's studies measured of speed and quality."""

from __future__ import annotations

from typing import Final, NamedTuple

from transformers import PretrainedConfig

from ds_distill.estimate.flops import forward_flops_per_token
from ds_distill.models.families import get_family_by_type

# Bytes per parameter of an int8 file that `export` writes: 68.1 MB (ONNX) and 66.7 MB (OpenVINO)
# for 66.4 M parameters, from docs/results/benchmarks/inference-base.
INT8_BYTES: Final = 1.03


class Latency(NamedTuple):
    """How many times as fast as its teacher a student was, on two CPU cores, for sequences of 128 tokens.

    Args:
        teacher: (layers, hidden size) of the teacher.
        student: The same of the student.
        fp32: Lowest and highest factor in fp32, both in the same backend (PyTorch or ONNX Runtime), one or
            32 sequences at a time.
        int8: The same of the student in OpenVINO int8 compared with the teacher in fp32, or None where
            this was not measured.
        report: The folder with the report.
    """

    teacher: tuple[int, int]
    student: tuple[int, int]
    fp32: tuple[float, float]
    int8: tuple[float, float] | None
    report: str


LATENCIES: Final = (
    Latency((12, 768), (6, 768), (1.8, 2.6), (6.0, 9.8), "docs/results/benchmarks/inference-base"),
    Latency((6, 384), (3, 384), (1.5, 2.2), None, "docs/results/benchmarks/inference-6x384"),
)


class Retention(NamedTuple):
    """Which share of its teacher's score a student of one shape kept.

    Args:
        families: The teacher's families that it holds for.
        teacher: (layers, hidden size) of the teacher.
        student: The same of the student.
        share: The student's mean score divided by the teacher's.
        basis: "measured", by this project, or "published".
        what: The models, text and tasks.
        source: The paper, or the page of this project.
    """

    families: tuple[str, ...]
    teacher: tuple[int, int]
    student: tuple[int, int]
    share: float
    basis: str
    what: str
    source: str


RETENTIONS: Final = (
    Retention(
        ("bert",),
        (12, 768),
        (6, 768),
        0.97,
        "published",
        "DistilBERT of BERT-base, mean of GLUE (77.0 of 79.5), after English Wikipedia and BookCorpus",
        "Sanh et al. 2019, table 1",
    ),
    Retention(
        ("bert",),
        (6, 384),
        (3, 384),
        0.944,
        "measured",
        "mean of STS-B, RTE, SST-2 and SQuAD after 6.5 M tokens with ds_configs/few_tokens.yaml; 81.6 % without "
        "distillation",
        "docs/results/retention.md",
    ),
)


def expected_result(
    teacher: PretrainedConfig, student: PretrainedConfig, parameters: int, uses_teacher: bool = True
) -> dict:
    """Return what to expect of a student of `parameters` parameters.

    The keys are "parameters", "disk_mb" by number format, "latency" and "retention". The last is None
    unless a study or a paper has a teacher and a student of these shapes.

    Args:
        teacher: The teacher's config.
        student: The student's config.
        parameters: The student's parameters.
        uses_teacher: Whether the recipe's losses need the teacher.
    """
    shapes = []
    for config in (teacher, student):
        dims = get_family_by_type(config.model_type).dims(config)
        shapes.append((dims.depth, dims.width))
    measured = next((row for row in LATENCIES if [row.teacher, row.student] == shapes), None)
    retention = next(
        (
            row
            for row in RETENTIONS
            if uses_teacher and teacher.model_type in row.families and [row.teacher, row.student] == shapes
        ),
        None,
    )
    ratio = forward_flops_per_token(teacher, 128, projected=0.0) / forward_flops_per_token(student, 128, projected=0.0)
    return {
        "parameters": parameters,
        "disk_mb": {
            "fp32": round(4 * parameters / 1e6),
            "fp16": round(2 * parameters / 1e6),
            "int8": round(INT8_BYTES * parameters / 1e6),
        },
        "latency": {
            "operations_ratio": round(ratio, 2),
            "times_as_fast_fp32": measured and measured.fp32,
            "times_as_fast_int8": measured and measured.int8,
            "source": measured and measured.report,
        },
        "retention": retention
        and {
            "share_of_teachers_score": retention.share,
            "basis": retention.basis,
            "what": retention.what,
            "source": retention.source,
        },
    }
