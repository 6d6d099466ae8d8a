"""Check whether a client's numbers agree with those that are expected."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

PYTORCH = "pytorch"  # whose answers are expected of files in fp32
QUANTIZED = ("onnx-int8", "openvino-int8", "onnx-int4", "openvino-int4")  # compared with the file's own answers
# These are shares of the reference's largest value. They allow for sums in another order, and where activations are
# rounded also for the codes that such a sum moves to the next.
TOLERANCES = {"hf": 1e-4, "onnx": 1e-4, "torch-export": 1e-4} | dict.fromkeys(QUANTIZED, 0.05)
VIEWS = ("logits", "scores", "answer", "mean", "unit_mean")


class Wrong(Exception):
    """An answer that cannot be used: it has another shape, is not finite, is empty, or is missing."""


def difference(view: str, answer: object, reference: Mapping) -> float:
    """Return the largest difference of one answer from the expected one, as a share of that one's largest value.

    Args:
        view: One of VIEWS. "logits" and "mean" are lists of numbers, "unit_mean" is the mean
            brought to length 1, "scores" has [key, score] pairs, best first, and "answer" has
            words.
        answer: The client's answer.
        reference: The expected views of the same input.

    Raises:
        Wrong: `answer` cannot be compared.
    """
    if view not in VIEWS:
        raise Wrong(f"{view}: an answer of no known kind")
    if {"unit_mean": "mean"}.get(view, view) not in reference:
        raise Wrong("no answer of that kind is expected")
    if view == "scores":
        return _score_difference(answer, reference["scores"])
    if view == "answer":
        if answer != reference["answer"]:
            raise Wrong(f"{answer!r} where {reference['answer']!r} is expected")
        return 0.0
    expected = reference["mean"] if view == "unit_mean" else reference[view]
    if view == "unit_mean":
        length = math.sqrt(sum(value * value for value in expected))
        expected = [value / length for value in expected]
    values = _numbers(answer, view)
    if len(values) != len(expected):
        raise Wrong(f"{len(values)} numbers where {len(expected)} are expected")
    return max(abs(actual - target) for actual, target in zip(values, expected, strict=True)) / max(map(abs, expected))


def check_answers(
    answers: Mapping[str, Mapping], reference: Mapping[str, Mapping], cuts_last: bool = False
) -> dict[str, float]:
    """Return the largest difference for every input of the reference, by the input's name.

    Args:
        answers: Views of the client's answers, by the input's name.
        reference: The expected views, likewise.
        cuts_last: Whether the client cuts overlong texts after [SEP] has been added at their end,
            so that it is lost.

    Raises:
        Wrong: An input has no answer, or one that cannot be compared.
    """
    largest = {}
    for name, expected in reference.items():
        views = answers.get(name)
        if not views:
            raise Wrong(f"no answer to the input {name}")
        differences = []
        if cuts_last:
            expected = expected.get("cut_last", expected)
        for view, values in views.items():
            try:
                differences.append(difference(view, values, expected))
            except Wrong as error:
                raise Wrong(f"input {name}, {view}: {error}") from None
        largest[name] = max(differences)
    return largest


def too_alike(reference: Mapping[str, Mapping]) -> str | None:
    """Return why the expected answers could not tell which text a client has read, or None if they can.

    The answers to no two inputs may be closer than ten times the tolerance of an fp32 format, and
    those to some two must be farther apart than the tolerance of a quantized format.
    """
    names, apart = list(reference), []
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            shared = [
                view for view in ("scores", "mean", "logits") if view in reference[one] and view in reference[other]
            ]
            distance = max(_distance(view, reference[one][view], reference[other][view]) for view in shared)
            if distance < 10 * TOLERANCES["hf"]:
                return f"the answers to {one} and {other} differ by {distance:.2g} of the largest value only"
            apart.append(distance)
    if max(apart) <= max(TOLERANCES.values()):
        return f"all answers lie within {max(apart):.2g} of the largest value"
    return None


def _distance(view: str, one: Mapping | Sequence, other: Mapping | Sequence) -> float:
    if view == "scores" and set(one) != set(other) or len(one) != len(other):
        return math.inf
    first, second = (list(values.values()) if isinstance(values, Mapping) else values for values in (one, other))
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) / max(map(abs, (*first, *second)))


def _score_difference(answer: object, expected: Mapping[str, float]) -> float:
    if not isinstance(answer, Sequence) or isinstance(answer, str) or not answer:
        raise Wrong("no scores")
    keys = [str(key) for key, _ in answer]
    scores = _numbers([score for _, score in answer], "scores")
    unknown = [key for key in keys if key not in expected]
    if unknown:
        raise Wrong(f"a score for {unknown[0]}, where the labels are {', '.join(list(expected)[:5])}")
    best = sorted(expected.values(), reverse=True)[: len(scores)]
    by_label = max(abs(score - expected[key]) for key, score in zip(keys, scores, strict=True))
    ranked = max(abs(score - target) for score, target in zip(sorted(scores, reverse=True), best, strict=True))
    return max(by_label, ranked) / max(abs(value) for value in expected.values())


def _numbers(answer: object, view: str) -> list[float]:
    if not isinstance(answer, Sequence) or isinstance(answer, str) or not answer:
        raise Wrong(f"no {view}")
    values = [float("nan") if value is None else float(value) for value in answer]
    if not all(map(math.isfinite, values)):
        raise Wrong("a number that is not finite")
    return values
