"""Test a study's paired comparisons, on outputs whose figures are known."""

from pathlib import Path

import numpy as np
import pytest

from ds_distill.study.comparisons import comparison_sections
from ds_distill.study.figures import make_constant_row, retained_share
from ds_distill.study.outputs import TaskOutputs, load_outputs
from ds_distill.study.plan import Study
from ds_distill.study.score_tables import data_set_table, retention_table, task_tables
from ds_distill.tasks.dev_outputs import FILE, DevOutputs
from ds_distill.utils.errors import UserError

TASKS = ["sst2", "stsb"]
LABELS = np.arange(200) % 2
NUMBERS = np.random.default_rng(0).random(200)


def write_run(folder: Path, task: str, right: int, data: str = "data") -> None:
    """Write the outputs of a run that answers the first `right` of 200 examples as they are labeled."""
    known = np.arange(200) < right
    labels = LABELS if task == "sst2" else NUMBERS
    predicted = np.where(known, labels, 1 - labels)
    metrics = {"accuracy": 1} if task == "sst2" else {"pearson": 0.5, "spearman": 0.5}
    arrays = {"dev.predicted": predicted, "dev.labels": labels}
    arrays |= {f"dev.{metric}.constant": np.array([answer]) for metric, answer in metrics.items()}
    folder.mkdir(parents=True)
    DevOutputs(data, arrays).save(folder / FILE)


@pytest.fixture
def study(tmp_path):
    """Return a study of a teacher and two students on two tasks, its folder and its rows."""
    plan = Study("ds_configs/few_tokens.yaml", "T", [], [], None, {"a": {}, "b": {}}, TASKS, seeds=2)
    right = {"teacher": (180, 180), "a": (160, 160), "b": (140, 120)}
    rows = [{"model": model, "tasks": {}} for model in right]
    for row in rows:
        for task in TASKS:
            seeds = [{"seed": seed} for seed in range(2)]
            row["tasks"][task] = {"metric": "accuracy" if task == "sst2" else "pearson", "seeds": seeds}
            for seed, count in enumerate(right[row["model"]]):
                write_run(tmp_path / "tasks" / task / row["model"] / f"seed={seed}", task, count)
    return plan, tmp_path, rows


def test_every_student_is_compared_with_the_first_and_with_the_teacher(study):
    plan, folder, rows = study
    differences, shares = comparison_sections(rows, TASKS, load_outputs(plan, folder, rows))
    pairs = [(row["model"], row["baseline"]) for row in differences.rows]
    assert pairs == [("b", "a"), ("a", "teacher"), ("b", "teacher")]
    value, low, _, high = differences.rows[1]["sst2"].replace("(", "").replace(")", "").split()
    assert value == "-10.00" and float(low) < -10 < float(high) < 0, "80 % are right of the teacher's 90 %"
    # Of examples that the teacher alone knows there are 20 of 200; unpaired, the error would be that of two shares.
    assert float(high) - float(low) == pytest.approx(2 * 1.96 * 100 * (0.1 * 0.9 / 200) ** 0.5, rel=0.1)
    [kept, above] = [row["sst2"].split(" %")[0] for row in shares.rows if row["model"] == "a"]
    assert (kept, above) == ("88.9", "75.0"), "80 of 90, and 30 of 40 above one half"
    kept, above = [row["stsb"] for row in shares.rows if row["model"] == "a"]
    assert kept == above, "a constant correlates with nothing"
    means = [row["all"] for row in differences.rows]
    assert all("(" in mean and "of sst2" not in mean for mean in means) and "Once" not in differences.text


def test_what_cannot_be_compared_is_said(study):
    plan, folder, rows = study
    (folder / "tasks/sst2/a/seed=1" / FILE).unlink()
    (folder / "tasks/stsb/b/seed=0" / FILE).unlink()
    write_run(folder / "tasks/stsb/b/seed=2", "stsb", 100, data="other")
    rows[2]["tasks"]["stsb"]["seeds"] = [{"seed": 2}]
    rows[0]["tasks"]["sst2"]["seeds"] = [{"seed": 1}]
    differences, shares = comparison_sections(rows, TASKS, load_outputs(plan, folder, rows))
    assert (
        f"sst2: a is not compared: {folder}/tasks/sst2/a/seed=1 holds neither {FILE} nor the model." in differences.text
    )
    assert "stsb: b is not compared: it was scored on other data than teacher." in differences.text
    assert differences.text.endswith("holds the variation of examples alone: sst2: teacher.")
    assert [row["sst2"] == "–" for row in differences.rows] == [True, True, False]
    assert differences.rows[2]["all"].endswith("), of sst2") and differences.rows[0]["all"] == "–"
    only = comparison_sections(rows, ["sst2"], {"sst2": TaskOutputs("accuracy", {}, {"a": "it is gone"})})
    assert [(section.rows, section.text) for section in only] == [
        ([], "None can be made.\n\nsst2: a is not compared: it is gone.")
    ]


def test_a_study_with_nothing_to_compare_has_no_such_table(study):
    plan, folder, rows = study
    rows[1]["tasks"], rows[2]["tasks"] = {}, {}
    assert comparison_sections(rows, TASKS, load_outputs(plan, folder, rows)) == []


def test_a_run_that_kept_nothing_is_scored_again_with_the_studys_data(study, monkeypatch):
    plan, folder, rows = study
    plan.data = str(folder / "data")
    kept = {}
    for seed in range(2):
        run = folder / f"tasks/sst2/a/seed={seed}"
        kept[run] = DevOutputs.load(run / FILE)
        (run / FILE).unlink()
        (run / "model").mkdir()
        (run / "result.json").touch()
    read = []
    monkeypatch.setattr("ds_distill.finetune.data.load_data", lambda task, folder: read.append(folder) or "the data")
    monkeypatch.setattr(
        "ds_distill.finetune.dev_outputs.score_again", lambda run, data: kept[run] if data == "the data" else None
    )
    outputs = load_outputs(plan, folder, rows)
    assert outputs["sst2"].runs["a"] == [*kept.values()] and not outputs["sst2"].problems
    assert read == [str(folder / "data" / "sst2")], "once for all seeds"

    def missing(task, folder):
        raise UserError("the data are gone")

    monkeypatch.setattr("ds_distill.finetune.data.load_data", missing)
    assert load_outputs(plan, folder, rows)["sst2"].problems == {"a": "the data are gone"}


def test_the_constant_answer_stands_beside_the_scores():
    def row(model, score, **others):
        result = {"metric": "accuracy", "metrics": {"accuracy": score}, "seeds": [{"accuracy": score}], **others}
        return {"model": model, "tasks": {"sst2": result, "rte": result}}

    rows = [row("teacher", 0.9, constant={"accuracy": 0.5}), row("a", 0.8)]
    [scores] = task_tables(rows, ["sst2", "rte"])
    assert scores.columns["above"] == "share above the constant answer"
    assert scores.rows[1] | {"kept": "88.9 %", "above": "75.0 %"} == scores.rows[1]
    assert scores.rows[2] | {"model": "constant answer", "mean": "50.0", "sst2": "50.0"} == scores.rows[2]
    assert retention_table(rows, ["sst2", "rte"]).rows == [
        {"model": "a", "all": "88.9 % (75.0 %)", "sst2": "88.9 % (75.0 %)", "rte": "88.9 % (75.0 %)"}
    ]
    unfinished = retention_table([*rows, {"model": "b", "tasks": {}}], ["sst2", "rte"])
    assert unfinished.rows[1]["all"] == unfinished.rows[1]["rte"] == "not run"
    constant = make_constant_row(rows)
    assert retained_share(rows[1], row("teacher", 0.5), ["sst2"], constant) == "–", "nothing lies above it"
    for one in rows:
        one["tasks"]["ner"] = {"metric": "f1", "metrics": {"f1": 0.6}, "seeds": [{"f1": 0.6}]}
    assert retention_table(rows, ["sst2", "ner"]).rows == [
        {"model": "a", "all": "93.3 % (75.0 %, of sst2)", "sst2": "88.9 % (75.0 %)", "ner": "100.0 %"}
    ]
    [*_, scores] = task_tables(rows, ["ner"])
    assert scores.rows[1]["above"] == scores.rows[2]["mean"] == scores.rows[2]["ner"] == "–", "it has none, ever"
    assert make_constant_row(rows[1:]) is None and "above" not in task_tables(rows[1:], ["sst2"])[0].columns


def test_the_sizes_of_data_sets_are_those_of_all_models():
    def row(model, train, cut):
        result = {"metric": "accuracy", "examples": {"train": train, "dev": 200}, "truncated": {"train": cut}}
        return {"model": model, "tasks": {"rte": result}}

    [line] = data_set_table([row("a", 2490, 7), row("b", 2490, 7)]).rows
    assert line | {"train": 2490, "truncated": 7, "points": "0.50"} == line
    [line] = data_set_table([row("a", 2490, 7), row("few", 500, 1), row("b", 2490, 7)]).rows
    assert line | {"train": "500–2,490", "truncated": "1–7", "dev": 200} == line
