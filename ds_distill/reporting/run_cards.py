"""The answer that a report on runs begins with: what the student keeps, its size, its speed and its held-out loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ds_distill.reporting.heldout import POSITIONS, matched_terms, term_cell
from ds_distill.reporting.pages import Card
from ds_distill.reporting.run_rows import (
    Row,
    Share,
    TeacherFigures,
    divide_figures,
    divide_scores,
    find_baseline,
    score_error,
)
from ds_distill.reporting.runs import Run

NBSP = "\u00a0"  # no line ends between a number and its unit


def make_cards(
    runs: Sequence[Run], rows: Sequence[Row], teachers: Mapping[str, TeacherFigures], kind: str, latency_of: str
) -> list[Card]:
    """Return the cards of a report.

    Args:
        runs: The report's runs. The cards are those of the first distillation, or else of the first run that was
            trained on text, and then one per fine-tuning that has a teacher.
        rows: The figures of those that were trained on text, and of their teachers.
        teachers: What is known of each run's teacher, by the run's label.
        kind: The positions that held-out figures are shown at, a key of `POSITIONS`.
        latency_of: What the rows' `latency_ms` are of, in words.
    """
    trained = [run for run in runs if not run.is_finetuning]
    main = next((run for run in trained if run.has_teacher), trained[0] if trained else None)
    tuned = [run for run in runs if run.is_finetuning]
    named = {row["model"]: row for row in rows}
    cards = []
    if main is not None:
        teacher = teachers[main.label].row if main.label in teachers else None
        baseline = find_baseline(main, trained) if main.has_teacher else None
        row, other = named[main.label], named[baseline.label] if baseline else None
        cards += [_kept_card(row, teacher, kind, main.has_teacher), _size_card(row, teacher)]
        cards += [_speed_card(row, teacher, latency_of), _loss_card(row, teacher, other, kind)]
    scored = [run for run in tuned if run.label in teachers] or ([] if main else tuned)
    cards += [_score_card(run, teachers[run.label].row if run.label in teachers else None) for run in scored]
    return [card for card in cards if card is not None]


def percent(value: float | None, error: float | None = None) -> str:
    """Return a share in percent with one decimal, and its standard error where there is one."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if error is None else f"{NBSP}±{NBSP}{100 * error:.1f}") + f"{NBSP}%"


def _share_card(label: str, share: Share, note: str) -> Card:
    error = "" if share.error is None else f"± {100 * share.error:.1f}"
    return Card(label, percent(share.value), error, note)


def _error_note(share: Share) -> str:
    return "" if share.error is None else "; ± is one standard error"


def _kept_card(row: Row, teacher: Row | None, kind: str, has_teacher: bool) -> Card | None:
    key = f"{kind}_accuracy"
    if row.get(key) is None:
        return None
    accuracy, note = percent(row[key], row.get(f"{key}_se")), f"{row['model']}, {POSITIONS[kind]}"
    if not has_teacher:
        return Card("Held-out accuracy", accuracy, "", note)
    if teacher is None or teacher.get(key) is None:
        return Card(
            "Held-out accuracy", accuracy, "", f"{note}; the teacher's accuracy on the same tokens is not known"
        )
    whole = percent(teacher[key], teacher.get(f"{key}_se"))
    share = divide_figures(row, teacher, key)
    if share is None:
        return Card("Held-out accuracy", accuracy, "", f"{note}; {teacher['model']} {whole}")
    note = f"held-out accuracy {POSITIONS[kind]}: {accuracy} of {teacher['model']}'s {whole}{_error_note(share)}"
    return _share_card("Teacher's accuracy kept", share, note)


def _size_card(row: Row, teacher: Row | None) -> Card | None:
    if row.get("parameters") is None:
        return None
    if teacher is not None and (share := divide_figures(row, teacher, "parameters")):
        note = f"of the teacher's: {row['parameters']:,} of {teacher['parameters']:,} parameters"
        return _share_card("Size", share, note)
    return Card("Size", f"{row['parameters']:,}", "", "parameters")


def _speed_card(row: Row, teacher: Row | None, latency_of: str) -> Card | None:
    if teacher is None:
        return None
    mine, whole = row.get("latency_ms"), teacher.get("latency_ms")
    if mine and whole:
        note = f"as fast as the teacher: {mine:.2f} instead of {whole:.2f} ms" + (f", {latency_of}" * bool(latency_of))
        return Card("Speed", f"{whole / mine:.2f}×", "", note)
    if share := divide_figures(row, teacher, "forward_mflops_per_token"):
        note = "of the teacher's operations per token in a forward pass, which are counted, not timed"
        return _share_card("Computation", share, note)
    return None


def _loss_card(row: Row, teacher: Row | None, baseline: Row | None, kind: str) -> Card | None:
    key = f"{kind}_loss"
    value, error = row.get(key), row.get(f"{key}_se")
    if value is None:
        return _terms_card(row)
    others = {
        "at the start": row.get(f"start_heldout_{key}"),
        "the teacher": teacher.get(key) if teacher else None,
        baseline["model"] if baseline else "": baseline.get(key) if baseline else None,
    }
    note = f"nats per position, {POSITIONS[kind]}" + "".join(
        f"; {name} {loss:.3f}" for name, loss in others.items() if loss is not None
    )
    return Card("Held-out loss", f"{value:.3f}", "" if error is None else f"± {error:.3f}", note)


def _terms_card(row: Row) -> Card | None:
    """Return the card of a bare encoder's held-out terms."""
    terms = [name for name in matched_terms(row) if name != "loss"]
    if not terms or row.get("loss") is None:
        return None
    note = "weighted sum of " + ", ".join(f"{name} {term_cell(row, name)}" for name in terms)
    start, error = row.get("start_heldout_loss"), row.get("loss_se")
    note += "" if start is None else f"; {start:.3g} at the start"
    return Card("Held-out loss", f"{row['loss']:.3g}", "" if error is None else f"± {error:.1g}", note)


def _score_card(run: Run, teacher: Row | None) -> Card | None:
    metric = run.summary["metric"]
    name, task, seeds = metric.replace("_", " "), run.summary["task"], len(run.summary["seeds"])
    value, error = run.summary["metrics"][metric], score_error(run.summary)
    many = f", median of {seeds} seeds" if seeds > 1 else ", one seed"
    if value is None:
        return None
    score = percent(value, error)
    if teacher is not None and (share := divide_scores(run, teacher)):
        whole = percent(teacher["metrics"][metric], score_error(teacher))
        note = f"{run.label}, {name}: {score} of {teacher['model']}'s {whole}{many}{_error_note(share)}"
        return _share_card(f"Teacher's score kept, {task}", share, note)
    return Card(f"Score, {task}", score, "", f"{run.label}, {name}{many}")
