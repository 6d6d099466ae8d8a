"""Test the report on runs, from folders as runs leave them."""

import json
import math
import re

import pytest

from ds_distill.recipe import Losses, Match
from ds_distill.reporting.panels import Line, Panel, limits_after_start, make_svg, mean_points
from ds_distill.reporting.run_panels import heldout_panels, labels_of_stages, run_panels, term_labels, training_panels
from ds_distill.reporting.run_report import Extras, make_page, write_report
from ds_distill.run_record import describe_command
from ds_distill.study.report import write_report as report
from ds_distill.utils.errors import UserError

TEACHER = {"mask_loss": 1.5, "mask_accuracy": 0.5, "mask_accuracy_se": 0.01, "mask_count": 1000, "mlm_loss": 1.2}
RECORD = {
    "command": "ds-distill distill --output RUN",
    "finished": "2026-01-02 03:04 UTC",
    "versions": {"torch": "9.8.7"},
    "hardware": {"cpu": "a processor", "cpu_cores": 2, "ranks": 1},
    "layer_map": [0, 2],
}


def figures(loss, accuracy):
    return {
        "mask_loss": loss,
        "mask_loss_se": 0.05,
        "mask_accuracy": accuracy,
        "mask_accuracy_se": 0.02,
        "mask_count": 1000,
        "mlm_loss": loss - 0.2,
        "mlm_accuracy": accuracy + 0.1,
    }


def write_run(folder, *, loss=2.0, accuracy=0.4, weights=None, heldout=figures, teacher=TEACHER, data="d" * 64):
    """Write the files of a finished distillation to `folder`, or of a run without the teacher where KL weighs 0."""
    weights = {"kl": 5.0, "mlm": 2.0, "cosine": 1.0} | (weights or {})
    folder.mkdir(parents=True)
    identity = {f"losses.{name}": weight for name, weight in weights.items()}
    identity |= {"data": data, "teacher": "f" * 16, "training.max_tokens": 200, "training.seed": 0}
    last = heldout(loss, accuracy)
    curves = {
        "history": [
            {"step": i, "tokens": 100 * i, "loss": 9.0, "kl": 1 / i, "mlm": 3.0, "cosine": 0.1} for i in (1, 2)
        ],
        "heldout": {"": [{"step": 0, "tokens": 0} | heldout(4.0, 0.1), {"step": 2, "tokens": 200} | last]},
    }
    summary = {"parameters": 40, "forward_mflops_per_token": 3.0, "tokens": 200, "tokens_per_second": 12.3}
    summary |= {f"heldout_{key}": value for key, value in last.items()}
    summary |= {f"start_heldout_{key}": value for key, value in heldout(4.0, 0.1).items()}
    if teacher and weights["kl"]:
        curves["teacher"] = {"": teacher}
        summary |= {f"teacher_heldout_{key}": value for key, value in teacher.items()}
        summary |= {"teacher_parameters": 100, "teacher_forward_mflops_per_token": 12.0}
    for name, content in {"run": identity, "curves": curves, "summary": summary, "record": RECORD}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def pair(tmp_path):
    without = {"kl": 0.0, "cosine": 0.0}
    return {
        "student, distilled": write_run(tmp_path / "distilled"),
        "student, no teacher": write_run(tmp_path / "baseline", loss=2.5, accuracy=0.25, weights=without),
    }


def cards_of(page):
    return {card.label: (card.value, card.error, card.note) for card in page.cards}


def test_a_report_begins_with_what_the_student_keeps(pair, tmp_path):
    cards = cards_of(make_page(pair, []))
    # ± √((0.02 / 0.5)² + (0.4 · 0.01 / 0.5²)²) = 4.3 %
    kept, error, note = cards["Teacher's accuracy kept"]
    assert (kept, error) == ("80.0\u00a0%", "± 4.3") and "at [MASK]" in note
    assert cards["Size"][0] == "40.0\u00a0%" and cards["Computation"][0] == "25.0\u00a0%"
    value, error, note = cards["Held-out loss"]
    assert (value, error) == ("2.000", "± 0.050")
    assert "at the start 4.000; the teacher 1.500; student, no teacher 2.500" in note


def test_the_page_is_one_file_with_both_students_and_the_teachers_level_in_one_figure(pair, tmp_path):
    write_report(pair, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["report.html"]
    assert not re.search(r"<script|<link|\bsrc=|@import|url\((?!#)|href=\"(?!#)", page), "nothing is fetched"
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids)) and set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)
    accuracy = re.search(r"<h3>Held-out accuracy at \[MASK\]</h3>(.*?)</figure>", page, re.DOTALL).group(1)
    for words in ("student, distilled", "student, no teacher", "teacher&#x27;s level: 50"):
        assert words in accuracy
    footer = page[page.index("<footer>") :]
    assert "<code>ds-distill distill --output RUN</code>" in footer and "torch 9.8.7" in footer
    assert footer.count("a processor, 2 cores") == 1, "what the runs share is said once"
    write_report(pair, tmp_path / "again")
    assert (tmp_path / "again" / "report.html").read_text() == page


def test_models_that_were_measured_side_by_side_and_their_answers(pair, tmp_path):
    def row(model, latency, accuracy):
        return {"model": model, "parameters": 7, "latency_ms": latency, "kept": accuracy / 0.8} | figures(2.2, accuracy)

    rows = [row("word counts", None, 0.1), row("teacher", 6.0, 0.8), row("student at start", 2.0, 0.2)]
    rows += [row("student, distilled", 2.0, 0.6), row("student, no teacher", 2.0, 0.5)]
    prompts = [{"prompt": "The <b> is [MASK].", "teacher": [("red", 0.75)], "student, distilled": [("blue", 0.5)]}]
    extras = Extras("Demo", rows=rows, latency_of="one forward", prompts=prompts, commands=[("ask it", "python <x>")])
    page = make_page(pair, [], extras)
    cards = cards_of(page)
    assert cards["Teacher's accuracy kept"][0] == "75.0\u00a0%", "as they were measured, not as the run says"
    assert cards["Speed"][0] == "3.00×" and "one forward" in cards["Speed"][2]
    results = page.sections[0]
    assert [line["model"] for line in results.rows] == [row["model"] for row in rows]
    assert [line["kept"].split("\u00a0")[0] for line in results.rows] == ["12.5", "100.0", "25.0", "75.0", "62.5"]
    write_report(pair, tmp_path / "out", extras=extras)
    text = (tmp_path / "out" / "report.html").read_text()
    assert "The &lt;b&gt; is [MASK]." in text and "blue 50\u00a0%" in text and "python &lt;x&gt;" in text


def test_runs_of_earlier_versions_say_which_figures_they_show(tmp_path):
    def older(loss, accuracy):
        return {"mlm_loss": loss, "mlm_accuracy": accuracy}

    run = write_run(tmp_path / "old", heldout=older, teacher=None)
    curves = {"history": [[1, 100, 9.0, 0.5, 3.0, 0.1]], "heldout": {"": [[0, 0, 4.0, 0.1], [1, 100, 2.0, 0.4]]}}
    (run / "curves.json").write_text(json.dumps(curves))
    (run / "record.json").unlink()
    page = make_page({"old": run, "new": write_run(tmp_path / "new")}, [])
    label, note = page.cards[0].label, page.cards[0].note
    assert label == "Held-out accuracy" and "at all selected positions" in note and "is not known" in note
    assert "some of which show the model the right token" in page.sections[0].text
    titles = [panel.title for section in page.sections for panel in section.panels]
    assert "Held-out accuracy at all selected positions" in titles and not any("[MASK]" in title for title in titles)
    assert "No record of command, date, versions and hardware: old." in page.footer


def test_a_teachers_own_run_is_the_level_where_its_tokens_are_the_same(tmp_path):
    student = write_run(tmp_path / "student", teacher=None)
    weights = {"kl": 0.0, "cosine": 0.0}
    same = write_run(tmp_path / "same", loss=1.0, accuracy=0.8, weights=weights)
    other = write_run(tmp_path / "other", loss=1.0, accuracy=0.8, weights=weights, data="e" * 64)
    page = make_page({"student": student}, [same])
    assert cards_of(page)["Teacher's accuracy kept"][0] == "50.0\u00a0%"
    levels = [panel.level for section in page.sections for panel in section.panels if panel.level is not None]
    assert levels == [1.0, 80.0]
    page = make_page({"student": student}, [other])
    assert "Teacher's accuracy kept" not in cards_of(page) and "other held-out tokens" in page.sections[0].text
    assert not any(panel.level for section in page.sections for panel in section.panels)


def test_runs_that_were_evaluated_on_more_or_less_text_are_not_compared(pair, tmp_path):
    more = write_run(tmp_path / "more", heldout=lambda *given: figures(*given) | {"mask_count": 2000})
    assert "must not be compared" not in make_page(pair, []).sections[0].text
    assert "must not be compared" in make_page(pair | {"more": more}, []).sections[0].text


def test_a_fine_tuning_beside_its_teacher(tmp_path):
    def tuned(name, *scores, teacher=None):
        (tmp_path / name).mkdir()
        summary = {"task": "sst2", "metric": "accuracy", "metrics": {"accuracy": sorted(scores)[len(scores) // 2]}}
        summary |= {"seeds": [{"accuracy": score} for score in scores], "settings": {"epochs": 3}, "parameters": 5}
        (tmp_path / name / "summary.json").write_text(json.dumps(summary | {"teacher": teacher}))
        return tmp_path / name

    student, teacher = tuned("student", 0.7, 0.72, 0.74), tuned("teacher", 0.9)
    [card] = make_page({"student": student}, [teacher]).cards
    assert (card.label, card.value, card.error) == ("Teacher's score kept, sst2", "80.0\u00a0%", "")
    result = report([student], tmp_path / "page", [teacher])
    assert result["sections"] == ["Scores on tasks", "Recipe"]
    for number, given in enumerate((teacher, teacher / "seed=0" / "model")):
        taught = tuned(f"taught {number}", 0.7, 0.72, 0.74, teacher=[str(given)])
        page = make_page({"taught": taught, "other": teacher}, [])
        assert [card.value for card in page.cards] == ["80.0\u00a0%"], (
            "the run that its --teacher names, or names a file of"
        )


def test_what_a_fine_tuning_did_not_read_is_in_the_report(tmp_path):
    summary = {"task": "mnli", "metric": "accuracy", "metrics": {"accuracy": 0.5}, "seeds": [{"accuracy": 0.5}]}
    summary |= {"examples": {"train": 18}, "truncated": {"train": 2}, "unknown": {"train": 7}, "settings": {}}
    summary |= {"left_out": {"train": {"rows without a label (-)": 6}}, "teacher": ["a/model", "b/model"]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = make_page({"run": tmp_path}, [])
    (text,) = (section for section in page.sections if section.heading == "Text")
    assert {row["what"]: row["run"] for row in text.rows} == {
        "examples, train": 18,
        "truncated, train": 2,
        "unknown tokens, train": 7,
        "left out, train: rows without a label (-)": 6,
    }
    (scores,) = (section for section in page.sections if section.heading == "Scores on tasks")
    assert scores.rows[0]["teacher"] == "a/model, b/model"


def test_bare_encoders_share_panels_only_where_they_are_compared_with_the_same():
    rows = {"": [{"step": 0, "tokens": 0, "mse": 0.5, "mse_se": 0.1}]}
    runs = {"a": rows, "b": rows, "c": rows}
    titles = [panel.title for panel in heldout_panels(runs, {}, objectives={"a": 1, "b": 1, "c": 2})]
    assert titles == ["Held-out mse of a and b", "Held-out mse of c"]
    assert [panel.title for panel in heldout_panels(runs, {})] == ["Held-out mse of bare encoders"]


def test_a_folder_without_a_finished_run_is_answered(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "summary.json").unlink()
    with pytest.raises(UserError, match="run: the run in it is not finished; resume it"):
        report([run], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"neither a study .* nor a run"):
        report([tmp_path / "empty"], tmp_path / "out")
    (run / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary.json is damaged"):
        report([run], tmp_path / "out")


def test_the_terms_of_a_loss_in_words():
    losses = Losses(kl_tokens="masked", match=[Match("mse", layers="mapped"), Match("mse", layers=[[1, 3]])])
    labels = term_labels(losses, [0, 2])
    assert labels["kl"].title == "KL divergence from the teacher, T = 2, masked tokens"
    assert labels["cosine"].title == "Cosine distance of hidden states, last layers"
    assert labels["mse"].title == "Squared error of hidden states, layers 0 ← 0, 1 ← 2"
    assert labels["mse_2"].title == "Squared error of hidden states, layers 1 ← 3 (mse_2)"
    inner = [
        Match("relation", layers=[(2, 4)]),
        Match("attention", layers="span_ends"),
        Match("mse", of="embeddings", normalize=True),
    ]
    losses = Losses(cosine=0.0, match=[Match("cosine", layers="mapped_last")])
    assert term_labels(losses, [0, 2])["cosine"].title == "Cosine distance of hidden states, layers 1 ← 2"
    assert [term_labels(Losses(match=inner))[match.loss].title for match in inner] == [
        "KL divergence of relations of queries, keys, values, layers 2 ← 4",
        "Squared error of attention scores, ends of the layers' spans",
        "Squared error of embeddings, divided by the teacher's deviations",
    ]


def test_terms_and_panels_of_a_run_with_stages():
    """A term has the rows of the stages that have it, and each panel marks where a stage begins."""
    first = Losses(kl=0.0, mlm=0.0, cosine=0.0, match=[Match("mse", layers=[[0, 1]])])
    second = Losses(mlm=0.0, match=[Match("mse", layers=[[1, 3]])])
    labels = labels_of_stages([first, second], clean_fraction=0.5)
    assert labels["mse"].title == (
        "Squared error of hidden states, layers 0 ← 1; then Squared error of hidden states, layers 1 ← 3"
    )
    assert labels["kl"].title.endswith("T = 2, masked sequences")
    history = [{"step": i, "tokens": 10 * i, "loss": 1.0, "mse": 0.5} for i in range(1, 5)]
    history += [{"step": i, "tokens": 10 * i, "loss": 9.0, "kl": 2.0, "cosine": 0.1} for i in range(5, 9)]
    heldout = {"": [{"step": 0, "tokens": 0} | figures(3.0, 0.2)]}
    stages = [{"stage": 1, "step": 0, "tokens": 0}, {"stage": 2, "step": 4, "tokens": 40}]
    panels = run_panels(history, heldout, labels, {}, stages)
    assert all([(mark.place, mark.label) for mark in panel.marks] == [(40, "stage 2")] for panel in panels)
    (kl,) = (panel for panel in panels if panel.title.startswith("KL"))
    assert kl.lines[0].values[:4] == [None] * 4 and kl.lines[0].values[4:] == [2.0] * 4
    (masked,) = (panel for panel in panels if panel.title.startswith("Masked-LM loss"))
    assert [line.label for line in masked.lines] == ["held-out"], "nothing is drawn for a loss that the run has not"
    svg = make_svg(kl, "kl")
    assert "stage 2 begins at 40 training tokens" in svg and ">stage 2<" in svg
    drawn = training_panels({"a": (history, labels), "b": (history, labels)}, {"a": stages})
    assert all([(mark.label, mark.look) for mark in panel.marks] == [("stage 2", 0)] for panel in drawn)


def test_the_panels_of_a_run_have_the_teachers_level():
    history = [{"step": i, "tokens": i, "loss": 1.0, "kl": 0.5, "mlm": 3.0, "cosine": 0.0} for i in (1, 2)]
    panels = run_panels(history, {"": [{"step": 0, "tokens": 0} | figures(3.0, 0.2)]}, {}, {"": TEACHER})
    assert {panel.title: panel.level for panel in panels} == {
        "Held-out masked-LM loss at [MASK]": 1.5,
        "Held-out accuracy at [MASK]": 50.0,
        "Masked-LM loss at all selected positions": 1.2,
        "kl": None,
    }, "a term that is 0 throughout is none"


def test_a_curve_is_thinned_to_means_and_its_beginning_does_not_hide_the_rest():
    rows = [{"step": i, "tokens": i, "kl": None if i == 1 else float(i)} for i in range(1, 1001)]
    tokens, means = mean_points(rows, "kl")
    assert len(tokens) == 100 and tokens[-1] == 1000 and means[0] == 6.0 and math.isclose(means[-1], 995.5)
    falling = Panel("loss", "nats", [Line("a", range(5), [100.0, 4.0, 3.0, 2.0, 1.0])], level=0.5)
    low, high = limits_after_start(falling)
    assert 0 < low < 0.5 and 4 < high < 5
    assert limits_after_start(Panel("loss", "nats", [Line("a", range(5), [5.0, 4.0, 3.0, 2.0, 1.0])])) is None
    assert limits_after_start(Panel("loss", "nats", [Line("a", [0, 1], [100.0, 1.0])])) is None
    svg = make_svg(falling, "x")
    named = make_svg(Panel("loss", "nats", [Line("_<b>$x_{$", [0], [1.0])]), "x")
    assert re.search(r"<text[^>]*> _&lt;b&gt;\$x_{\$</text>", named), "a name is no markup, no formula and not hidden"
    assert "a: 100 at first, 1 at last; teacher&#x27;s level: 0.5" in svg and "currentColor" in svg


def test_a_command_is_recorded_as_it_is_typed():
    assert (
        describe_command(["/x/ds_distill/__main__.py", "distill", "--output", "a b"])
        == "ds-distill distill --output 'a b'"
    )
    assert describe_command(["/bin/launch.sh", "--local_rank=1", "--seed", "2"]) == "launch.sh --seed 2"
