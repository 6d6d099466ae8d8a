"""Test pages and model cards."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from ds_distill.reporting.card_edits import put_section
from ds_distill.reporting.pages import Section, write_page
from ds_distill.reporting.plots import comparison_plot, loss_plot, points_plot
from ds_distill.reporting.tables import table
from ds_distill.study.figures import format_score, mean_score, retained_share
from ds_distill.study.score_tables import other_metrics_table, retention_table, task_tables
from ds_distill.study.student_tables import ablation_table, get_differing_settings, pretraining_section
from ds_distill.utils.files import json_text, write_json


def test_a_page_says_the_same_in_markdown_and_html(tmp_path):
    points_plot({"a": (1.0, 2.0), "b": (10.0, 1.0)}, "MB", "ms", tmp_path / "p.png", marked=("a",))
    rows = [{"who": "x < y", "ms": "1.50"}, {"who": "z", "ms": None}]
    section = Section(
        "Times & sizes",
        "First `code` here.\n\nSecond.",
        rows,
        {"who": "who", "ms": "p50 (ms)"},
        (1,),
        {"a picture": tmp_path / "p.png"},
    )
    write_page(tmp_path, "page", "A title", "What it is.", [section])
    markdown, page = (tmp_path / "page.md").read_text(), (tmp_path / "page.html").read_text()
    assert "## Times & sizes" in markdown and "| x < y | 1.50" in markdown and "![a picture](p.png)" in markdown
    assert (
        "Times &amp; sizes" in page
        and "<td>x &lt; y</td>" in page
        and "<code>code</code>" in page
        and "data:image/png;base64," in page
    )
    assert page.count('<tr class="mark">') == 1 and "http" not in page, "one file, nothing fetched"


def test_a_section_is_put_once(tmp_path):
    card = tmp_path / "README.md"
    put_section(card, "Speed", "fast")
    put_section(card, "Formats", "one")
    put_section(card, "Speed", "faster")
    assert card.read_text() == "## Speed\n\nfaster\n\n## Formats\n\none\n"
    card.write_text("# Card\n\n## Measured\n\n1\n")
    put_section(card, "Formats", "two\n\n### detail\n\n3")
    put_section(card, "Measured", "4")
    assert card.read_text() == "# Card\n\n## Measured\n\n4\n\n## Formats\n\ntwo\n\n### detail\n\n3\n"


def test_tables_of_a_study_by_hand():
    def row(model, *seeds):
        return {
            "model": model,
            "tasks": {
                "sst2": {
                    "metric": "accuracy",
                    "metrics": {"accuracy": sorted(seeds)[1]},
                    "seeds": [{"accuracy": s} for s in seeds],
                }
            },
        }

    rows = [
        row("teacher", 0.8, 0.9, 0.8),
        row("triple loss", 0.7, 0.8, 0.72),
        row("without KL", 0.6, 0.75, 0.7),
        {"model": "random start", "tasks": {}},
    ]
    [scores] = task_tables(rows, ["sst2"])
    assert "kept" in scores.columns and "kept" not in task_tables(rows[1:], ["sst2"])[0].columns, (
        "a plan without the teacher has no share of it"
    )
    assert scores.rows[1] == {
        "model": "triple loss",
        "parameters": "–",
        "mean": "72.0",
        "kept": "90.0 %",
        "sst2": "72.0 (70.0–80.0)",
    }
    rows[1]["parameters"] = 17.4e6
    [partly] = task_tables(rows, ["rte", "sst2"])  # missing runs are reported and count for nothing
    assert (
        partly.rows[1] | {"parameters": "17.4", "mean": "not run", "kept": "90.0 %, of sst2", "rte": "not run"}
        == partly.rows[1]
    )
    assert (
        scores.rows[3]["sst2"] == "not run"
        and scores.rows[5]["sst2"] == "91.3"
        and "the paper's" in scores.rows[5]["model"]
    )
    shares = retention_table(rows, ["rte", "sst2"])
    assert shares.rows[0] == {"model": "triple loss", "all": "90.0 %, of sst2", "rte": "not run", "sst2": "90.0 %"}
    zero = [row("teacher", 0.0, 0.0, 0.0), row("student", 0.1, 0.1, 0.1)]
    assert retained_share(zero[1], zero[0], ["sst2"]) == "–", "no share of nothing"
    for run, precision in zip(zero, ("bf16", "fp32"), strict=True):
        for seed in run["tasks"]["sst2"]["seeds"]:
            seed["number_format"] = precision
    assert (
        "precision of fine-tuning differs: bf16, fp32" in task_tables(zero, ["sst2"])[0].text
        and "precision" not in scores.text
    )
    assert retention_table(rows, ["sst2"]) is None and retention_table(rows[1:], ["rte", "sst2"]) is None, (
        "nothing that the tables do not say"
    )
    plan = {
        "a": {"losses.kl": 5, "training.max_grad_norm": 1},
        "b": {"losses.kl": 0, "training.max_grad_norm": 1},
        "c": {"training.max_grad_norm": 1},
    }
    assert get_differing_settings(plan) == {"losses.kl"}, "what all students have in common is no difference"
    plan = {
        "triple loss": {"training.max_grad_norm": 1},
        "without KL": {"training.max_grad_norm": 1, "losses.kl": 0},
        "random": {"training.max_grad_norm": 1, "student.init_layers": "random"},
    }
    ablation = ablation_table(rows, ["sst2"], plan)
    assert ablation.heading == "Ablation"
    for other in (
        {"losses.kl": 3, "training.max_grad_norm": 1},
        {"student.init_layers": [0, 1], "training.max_grad_norm": 1},
        {"losses.kl": 0},
    ):
        compared = ablation_table(rows, ["sst2"], plan | {"other": other})
        assert compared.heading == "Comparison of students" and compared.text.startswith(
            "They differ in losses.kl, student.init_layers"
        )
    assert ablation.rows[1] == {
        "student": "without KL",
        "loss": "not run",
        "mean": "70.0",
        "difference": "-2.00",
        "spread": "-10.00 to -2.00",
        "paper": "-2.96",
    }
    assert ablation.rows[2]["difference"] == "not run" and ablation.rows[2]["paper"] == "-3.69"


def test_what_a_task_is_also_scored_by():
    runs = [
        {"f1": 0.5, "exact_match": 0.4, "threshold": 1.0},
        {"f1": 0.6, "exact_match": 0.45, "threshold": 2.0},
        {"f1": 0.7, "exact_match": 0.5},
    ]
    summary = {"metric": "f1", "metrics": {"f1": 0.6, "exact_match": 0.45, "threshold": 1.5}, "seeds": runs}
    section = other_metrics_table(
        [{"model": "a", "tasks": {"squad": summary}}, {"model": "b", "tasks": {}}], ["sst2", "squad"]
    )
    assert section.columns == {"model": "model", "squad exact_match": "squad (exact match)"}
    assert [row["squad exact_match"] for row in section.rows] == ["45.0 (40.0–50.0)", "not run", "81.2", "77.7", "79.1"]
    assert other_metrics_table([{"model": "a", "tasks": {}}], ["squad"]) is None


def test_a_student_that_is_not_distilled_yet_is_said_to_be(tmp_path):
    (tmp_path / "students" / "a").mkdir(parents=True)
    (tmp_path / "students" / "a" / "curves.json").write_text(
        json.dumps({"heldout": {"": [[0, 0, 5.0, 0.1], [1, 10, 4.0, 0.2]]}})
    )
    rows = [
        {"model": "teacher", "tasks": {}},
        {"model": "b", "tasks": {}},
        {
            "model": "a",
            "tasks": {},
            "tokens": 10,
            "tokens_per_second": 5.0,
            "heldout_mlm_loss": 4.0,
            "heldout_sets": {"book": {"mlm_loss": 4.5}},
        },
        {"model": "a, task distillation", "student": "a", "tasks": {}},
    ]
    section = pretraining_section(tmp_path, rows, tmp_path / "p.png", {"a": {}, "b": {}})
    assert [row["model"] for row in section.rows] == ["b", "a"] and section.rows[1]["book"] == "4.500"
    assert {section.rows[0][key] for key in section.columns if key != "model"} == {"not run"}
    assert "at all selected positions" in section.text
    rows[2] |= {"heldout_mask_loss": 4.2, "heldout_mask_loss_se": 0.1, "heldout_mask_count": 9}
    rows[2]["heldout_sets"]["book"] |= {"mask_loss": 4.7, "mask_loss_se": 0.2, "mask_count": 9}
    section = pretraining_section(tmp_path, rows, tmp_path / "p.png", {"a": {}, "b": {}})
    assert "at [MASK]" in section.text and section.rows[1]["book"] == "4.700 ± 0.200"
    rows[0] |= {"heldout_mlm_loss": 3.0}  # a model that an earlier version measured
    rows[1] |= {"heldout_mlm_loss": 3.0}
    section = pretraining_section(tmp_path, rows, tmp_path / "p.png", {"a": {}, "b": {}})
    assert "at all selected positions" in section.text and section.rows[1]["book"] == "4.500"


NUMBERS = (
    st.floats(allow_nan=True, allow_infinity=True) | st.integers() | st.none() | st.booleans() | st.text(max_size=3)
)
VALUES = st.recursive(
    NUMBERS,
    lambda part: (
        st.lists(part, max_size=3) | st.tuples(part, part) | st.dictionaries(st.text(max_size=3), part, max_size=3)
    ),
)


@given(VALUES)
def test_what_is_written_is_json_for_any_reader(value):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    def measured(part):
        if isinstance(part, dict):
            return {key: measured(value) for key, value in part.items()}
        if isinstance(part, list | tuple):
            return [measured(value) for value in part]
        return None if isinstance(part, float) and not math.isfinite(part) else part

    assert json.loads(json_text(value), parse_constant=refuse) == measured(value)
    assert json.loads(json_text(value, indent=2), parse_constant=refuse) == measured(value)


def test_what_was_not_measured_is_no_number(tmp_path):
    write_json(tmp_path / "summary.json", {"threshold": math.inf, "seeds": [{"loss": math.nan}]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"threshold": None, "seeds": [{"loss": None}]}
    assert table([{"a": math.nan, "b": None, "c": 0.0}], {"a": "a", "b": "b", "c": "c"}).splitlines()[-1].split() == [
        "|",
        "–",
        "|",
        "–",
        "|",
        "0.000",
        "|",
    ]
    rows = [
        {"step": step, "tokens": 1000 * step, "mlm_loss": loss, "mlm_accuracy": None}
        for step, loss in enumerate((None, 4.0, None))
    ]
    history = [
        {"step": 1, "tokens": 1000, "loss": 1.0, "kl": None, "mlm": 4.0, "cosine": 0.1},
        {"step": 2, "tokens": 2000, "loss": None, "kl": 0.2, "mlm": None, "cosine": 0.1},
    ]
    at_mask = [row | {"mask_loss": row["mlm_loss"], "mask_loss_se": row["mlm_loss"] and 0.1} for row in rows]
    loss_plot(history, {"": at_mask, "book": rows}, tmp_path / "loss.png", "a run")
    comparison_plot({"a": {"": rows}, "b": {"": rows[:1]}}, tmp_path / "runs.png")
    assert (tmp_path / "loss.png").stat().st_size > 1000 and (tmp_path / "runs.png").stat().st_size > 1000


def test_a_study_says_what_could_not_be_measured():
    def row(model, task, middle, *seeds):
        return {
            "model": model,
            "tasks": {
                task: {"metric": "pearson", "metrics": {"pearson": middle}, "seeds": [{"pearson": s} for s in seeds]}
            },
        }

    partly, never = row("a", "stsb", 0.5, None, 0.5, 0.6), row("b", "stsb", None, None, None)
    assert (
        format_score(partly["tasks"]["stsb"]) == "50.0 (50.0–60.0, 2 of 3 seeds)"
        and format_score(never["tasks"]["stsb"]) == "–"
        and format_score(None) == "not run"
    )
    assert (
        mean_score(never, ["stsb"]) is None
        and retained_share(never, partly, ["stsb"]) == "–"
        and retained_share(partly, never, ["stsb"]) == "–"
    )
    [section] = task_tables([partly, never, {"model": "c", "tasks": {}}], ["stsb"])
    assert [(line["mean"], line["stsb"]) for line in section.rows[:3]] == [
        ("50.0", "50.0 (50.0–60.0, 2 of 3 seeds)"),
        ("–", "–"),
        ("not run", "not run"),
    ]
    students = [partly, never, row("c", "stsb", 0.4, 0.4, 0.3, 0.5)]
    lines = ablation_table(students, ["stsb"], {"a": {}, "b": {"losses.kl": 0}, "c": {"losses.mlm": 0}}).rows
    assert [line.get("difference") for line in lines] == [None, "–", "-10.00"] and lines[2][
        "spread"
    ] == "-20.00 to -10.00"
    unread = students[0] | {"heldout_mlm_loss": None}
    assert ablation_table([unread, *students[1:]], ["stsb"], {"a": {}, "b": {}, "c": {}}).rows[0]["loss"] == "–"
