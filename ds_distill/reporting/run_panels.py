"""The panels of runs: their held-out figures over tokens with the teacher's level, and the terms of their losses."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ds_distill.recipe import Losses, Match
from ds_distill.reporting.heldout import POSITIONS, has_guesses, matched_terms, shared_kind
from ds_distill.reporting.panels import Line, Mark, Panel, mean_points

Rows = Sequence[Mapping[str, Any]]
MLM_UNIT = "nats per position"
CORPUS_HELDOUT = "the corpus's held-out documents"


class TermLabel(NamedTuple):
    """A term's title, and the unit of its values."""

    title: str
    unit: str


DISTANCES = {
    "cosine": ("Cosine distance", "1 − cosine (mean over tokens)"),
    "mse": ("Squared error", "squared error (mean over tokens)"),
    "relation": ("KL divergence", "nats per token (mean over heads)"),
    "attention": ("Squared error", "squared error (mean over tokens and heads)"),
}
QUANTITIES = {
    "hidden": "hidden states",
    "embeddings": "embeddings",
    "query": "queries",
    "key": "keys",
    "value": "values",
    "query_key": "attention",
}


def term_labels(
    losses: Losses, layer_map: Sequence[int] | None = None, clean_fraction: float = 0.0
) -> dict[str, TermLabel]:
    """Return title and unit of each term of a recipe's losses, by its name in a run's history.

    The weighted sum, "loss", has none where there is a single term.

    Args:
        losses: The recipe's losses.
        layer_map: The teacher layer that each student layer started from, where it is known.
        clean_fraction: The share of the sequences that are not masked, at which KL does not look.
    """
    every = "masked sequences" if clean_fraction else "all tokens"
    tokens = "masked tokens" if losses.kl_tokens == "masked" else every
    kl = TermLabel(
        f"KL divergence from the teacher, T = {losses.temperature:g}, {tokens}",
        f"T² · nats per {'masked ' if losses.kl_tokens == 'masked' else ''}token",
    )
    matches = {name: _label(name, match, layer_map) for name, match in losses.matched_terms().items()}
    mlm = TermLabel("Masked-LM loss at all selected positions", "nats per position")
    weights = {"KL": losses.kl, "masked LM": losses.mlm} | {
        name: match.weight for name, match in losses.matched_terms().items()
    }
    parts = [f"{weight:g} × {name}" for name, weight in weights.items() if weight]
    total = {"loss": TermLabel(f"Weighted sum, {' + '.join(parts)}", "weighted loss")} if len(parts) > 1 else {}
    return total | {"kl": kl, "mlm": mlm} | matches


def labels_of_stages(
    objectives: Sequence[Losses], layer_map: Sequence[int] | None = None, clean_fraction: float = 0.0
) -> dict[str, TermLabel]:
    """Return the labels of the terms of a run whose stages have these losses, as `term_labels` does for one.

    A term whose settings differ between stages has the titles of all of them.
    """
    every = [term_labels(losses, layer_map, clean_fraction) for losses in objectives]
    labels: dict[str, TermLabel] = {}
    for name in dict.fromkeys(name for labels_of_one in every for name in labels_of_one):
        own = list(dict.fromkeys(one[name] for one in every if name in one))
        labels[name] = TermLabel("; then ".join(dict.fromkeys(label.title for label in own)), own[0].unit)
    return labels


def marks_of_stages(stages: Rows, look: int = 0) -> list[Mark]:
    """Return the marks of a run's stages but for the first: where each begins.

    Args:
        stages: Rows {stage, step, tokens}.
        look: The number of the run's color.
    """
    return [Mark(row["tokens"], f"stage {row['stage']}", look) for row in stages[1:]]


def _label(name: str, match: Match, layer_map: Sequence[int] | None) -> TermLabel:
    distance, unit = DISTANCES.get(match.loss, (match.loss, match.loss))
    pairs: list[tuple[int, int]] = []
    if match.layers in ("mapped", "mapped_last"):
        mapped = list(enumerate(layer_map or ()))
        pairs = mapped[-1:] if match.layers == "mapped_last" else mapped
    elif not isinstance(match.layers, str):
        pairs = [(student, teacher) for student, teacher in match.layers]
    listed = ", ".join(f"{student} ← {teacher}" for student, teacher in pairs)
    spans = match.layers == "span_ends"
    where = f", layers {listed}" if listed else ", ends of the layers' spans" if spans else f", {match.layers} layers"
    what = ", ".join(QUANTITIES[quantity] for quantity in match.quantities)
    if match.loss == "relation":
        what = f"relations of {what}"
    elif match.loss == "attention":
        what = "attention scores"
    if match.normalize:
        what += ", divided by the teacher's deviations"
    return TermLabel(
        f"{distance} of {what}{'' if match.quantities == ['embeddings'] else where}"
        + (f" ({name})" if name != match.loss else ""),
        unit,
    )


def heldout_panels(
    runs: Mapping[str, Mapping[str, Rows]],
    teacher: Mapping[str, Mapping[str, Any]],
    *,
    accuracy: bool = True,
    stages: Mapping[str, Rows] | None = None,
    objectives: Mapping[str, Hashable] | None = None,
) -> list[Panel]:
    """Return panels of the runs' held-out losses and accuracies over tokens, one of each per held-out set.

    Figures at [MASK] are shown where the last rows of a set have them, and else those at all selected positions. The
    title says which.

    Args:
        runs: Maps label → set → rows {step, tokens, each figure}; the corpus's own set is "".
        teacher: The teacher's figures by the name of the set, where they are known.
        accuracy: Whether to show accuracies too.
        stages: The rows of the runs' stages, by label; a run without stages may be left out.
        objectives: What the terms of each run compare, by label. Bare encoders share panels where it is equal.
    """
    bare = {label: curves for label, curves in runs.items() if not _guess(curves)}
    runs = {label: curves for label, curves in runs.items() if label not in bare}
    panels = []
    marks = [mark for i, label in enumerate(runs) for mark in marks_of_stages((stages or {}).get(label, ()), i)]
    sets = dict.fromkeys(name for curves in runs.values() for name in curves)
    for name in sets:
        kind = shared_kind(row for curves in runs.values() for row in curves.get(name, ())[-1:])
        where = f"{POSITIONS[kind]}" + (f", {name or CORPUS_HELDOUT}" if len(sets) > 1 or name else "")
        level = teacher.get(name, {})
        for figure, title, unit in (
            ("loss", "Held-out masked-LM loss", MLM_UNIT),
            ("accuracy", "Held-out accuracy", "% of positions guessed"),
        )[: 1 + accuracy]:
            key, scale = f"{kind}_{figure}", 100 if figure == "accuracy" else 1
            lines = [
                _line(label, curves.get(name, ()), key, scale, i) for i, (label, curves) in enumerate(runs.items())
            ]
            panels.append(Panel(f"{title} {where}", unit, lines, _scaled(level.get(key), scale), marks=marks))
    groups: dict[Hashable, dict[str, Mapping[str, Rows]]] = {}
    for label, curves in bare.items():
        groups.setdefault((objectives or {}).get(label), {})[label] = curves
    for group in groups.values():
        whose = "bare encoders" if len(groups) == 1 else " and ".join(group)
        panels += _panels_of_terms(group, whose, stages or {})
    return panels


def _guess(heldout: Mapping[str, Rows]) -> bool:
    """Return whether held-out rows are of a masked-LM model, not of a bare encoder; no rows count as such."""
    last = [row for rows in heldout.values() for row in rows[-1:]]
    return not last or any(has_guesses(row) for row in last)


def _panels_of_terms(runs: Mapping[str, Mapping[str, Rows]], whose: str, stages: Mapping[str, Rows]) -> list[Panel]:
    """Return a panel of each held-out term of bare encoders, of any of their stages, for each held-out set."""
    lines: dict[str, list[Line]] = {}
    marks: dict[str, list[Mark]] = {}
    for label, curves in runs.items():
        for name, rows in curves.items():
            for term in dict.fromkeys(term for row in rows for term in matched_terms(row)):
                title = "weighted loss" if term == "loss" else term
                where = f", {name or CORPUS_HELDOUT}" if len(curves) > 1 or name else ""
                full = f"Held-out {title} of {whose}{where}"
                found = lines.setdefault(full, [])
                marks.setdefault(full, []).extend(marks_of_stages(stages.get(label, ()), len(found)))
                found.append(_line(label, rows, term, 1, len(found)))
    return [Panel(title, "mean over tokens", found, marks=marks[title]) for title, found in lines.items()]


def training_panels(
    runs: Mapping[str, tuple[Rows, Mapping[str, TermLabel]]], stages: Mapping[str, Rows] | None = None
) -> list[Panel]:
    """Return a panel for each term of the training losses, with all runs that have it.

    Args:
        runs: Maps label → (the rows of its steps, the labels of its terms). Terms of different runs are in one panel
            where their labels are the same.
        stages: The rows of the runs' stages, by label; a run without stages may be left out.
    """
    panels: dict[TermLabel, list[Line]] = {}
    marks: dict[TermLabel, list[Mark]] = {}
    for look, (label, (history, labels)) in enumerate(runs.items()):
        for name in dict.fromkeys(name for row in history for name in row if name not in ("step", "tokens")):
            if name == "loss" and name not in labels:
                continue
            if any(row.get(name) for row in history):  # an earlier version wrote 0 for terms that a run did not have
                term = labels.get(name, TermLabel(name, name))
                panels.setdefault(term, []).append(_training_line(label, history, name, look))
                marks.setdefault(term, []).extend(marks_of_stages((stages or {}).get(label, ()), look))
    return [
        Panel(f"{term.title} (training)", term.unit, lines, falls=term.unit != MLM_UNIT, marks=marks[term])
        for term, lines in panels.items()
    ]


def run_panels(
    history: Rows,
    heldout: Mapping[str, Rows],
    labels: Mapping[str, TermLabel],
    teacher: Mapping[str, Mapping[str, Any]],
    stages: Rows = (),
) -> list[Panel]:
    """Return the panels of one run: its masked-LM loss in training and held out, its accuracy, and its other terms.

    Args:
        history: The rows of its steps.
        heldout: Its held-out rows by the name of the set.
        labels: The labels of its terms.
        teacher: The teacher's held-out figures by the name of the set, where they are known.
        stages: The rows of its stages, which are marked.
    """
    if not _guess(heldout):
        return _bare_panels(history, heldout, labels, stages)
    kind = shared_kind(row for rows in heldout.values() for row in rows[-1:])
    level = teacher.get("", {})

    def heldout_lines(key: str, scale: float = 1) -> list[Line]:
        return [
            _line(f"held-out {name}".strip(), rows, key, scale, i) for i, (name, rows) in enumerate(heldout.items())
        ]

    # The training loss is over all selected positions, so it stands beside the held-out loss over the same.
    # It is none where the run has no such loss, because it masks nothing.
    trained = any("mlm" in row for row in history)
    training = [_training_line("training", history, "mlm", len(heldout))] if trained else []
    panels = [
        Panel(
            f"Held-out accuracy {POSITIONS[kind]}",
            "% of positions guessed",
            heldout_lines(f"{kind}_accuracy", 100),
            _scaled(level.get(f"{kind}_accuracy"), 100),
        ),
        Panel(
            f"Masked-LM loss {POSITIONS['mlm']}",
            MLM_UNIT,
            [*training, *heldout_lines("mlm_loss")],
            level.get("mlm_loss"),
        ),
    ]
    if kind != "mlm":
        title = f"Held-out masked-LM loss {POSITIONS[kind]}"
        panels.insert(0, Panel(title, MLM_UNIT, heldout_lines(f"{kind}_loss"), level.get(f"{kind}_loss")))
    others = [name for name in dict.fromkeys(name for row in history for name in row) if name not in _NO_TERM]
    for name in others:
        if any(row.get(name) for row in history):
            term = labels.get(name, TermLabel(name, name))
            line = _training_line("training", history, name, len(heldout))
            panels.append(Panel(term.title, term.unit, [line], falls=True))
    return [replace(panel, marks=marks_of_stages(stages, len(heldout))) for panel in panels]


def _bare_panels(
    history: Rows, heldout: Mapping[str, Rows], labels: Mapping[str, TermLabel], stages: Rows
) -> list[Panel]:
    """Return the panels of a bare encoder's run: each term of its loss, in training and held out.

    The terms are those of all stages.
    """
    panels, marks = [], marks_of_stages(stages, len(heldout))
    terms = dict.fromkeys(term for rows in heldout.values() for row in rows for term in matched_terms(row))
    for term in terms:
        if term != "loss" or term in labels:
            label = labels.get(term, TermLabel(term, term))
            lines = [
                _line(f"held-out {name}".strip(), rows, term, 1, i) for i, (name, rows) in enumerate(heldout.items())
            ]
            lines.insert(0, _training_line("training", history, term, len(heldout)))
            panels.append(Panel(label.title, label.unit, lines, falls=True, marks=marks))
    return panels


_NO_TERM = ("step", "tokens", "loss", "mlm")


def _line(label: str, rows: Rows, key: str, scale: float, look: int) -> Line:
    return Line(
        label,
        [row["tokens"] for row in rows],
        [_scaled(row.get(key), scale) for row in rows],
        [_scaled(row.get(f"{key}_se"), scale) for row in rows],
        look,
    )


def _training_line(label: str, history: Rows, name: str, look: int) -> Line:
    tokens, values = mean_points(history, name)
    return Line(label, tokens, values, (), look, measured=False)


def _scaled(value: float | None, scale: float) -> float | None:
    return None if value is None else scale * value
