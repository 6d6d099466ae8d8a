"""Test a report on score against time and size, on times and scores that are known."""

import pytest

from ds_distill.study import report
from ds_distill.study.pareto_points import FILE, ParetoFile, combine, own_scores_file
from ds_distill.study.pareto_sections import make_pareto_sections
from ds_distill.study.plan import Study
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json
from tests.unit.study.test_comparisons import write_run

TASKS = ["sst2", "stsb"]
BACKENDS = {
    "onnx_fp32": {"runtime": "ONNX Runtime", "precision": "fp32", "exact": True},
    "onnx_int8": {"runtime": "ONNX Runtime", "precision": "int8", "exact": False},
    "eager_fp32": {"runtime": "PyTorch", "precision": "fp32", "exact": True},
}


def write_study(folder, right: dict[str, int], students: list[str], variants=()) -> None:
    """Write a study whose models answer the first examples of 200 as they are labeled."""
    plan = Study("ds_configs/few_tokens.yaml", "T", [], [], None, {name: {} for name in students}, TASKS, seeds=2)
    plan.include_teacher = "teacher" in right
    folder.mkdir(parents=True)
    write_json(folder / "study.json", vars(plan) | {"variants": {name: {"student": of} for name, of in variants}})
    for model, count in right.items():
        for task in TASKS:
            place, metric = folder / "tasks" / task / model, "accuracy" if task == "sst2" else "pearson"
            for seed in range(2):
                write_run(place / f"seed={seed}", task, count)
            seeds = [{"seed": seed, metric: count / 200} for seed in range(2)]
            write_json(place / "summary.json", {"metric": metric, "metrics": {metric: count / 200}, "seeds": seeds})


def write_times(folder, models: dict[str, str], times: dict[tuple[str, str], list[float]]) -> ParetoFile:
    """Write pareto.json: models by name with what they were measured as, and the times of each in ms by round."""
    results = ParetoFile("a machine", "2026-01-02", 2, ["1 × 128"], BACKENDS)
    results.models = [{"study": "study", "model": name, "measured": key} for name, key in models.items()]
    for (key, backend), rounds in times.items():
        size = {"fp32": 40.0, "int8": 10.0}[BACKENDS[backend]["precision"]] * (2 if key == "teacher" else 1)
        results.measured.setdefault(key, {"megabytes": {}})["megabytes"][backend] = size
        results.turns += [
            {"round": number, "measured": key, "backend": backend, "shape": "1 × 128", "milliseconds": time}
            for number, time in enumerate(rounds)
        ]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE, vars(results))
    return results


@pytest.fixture
def measured(tmp_path):
    """Return a study of a teacher, two students of one shape and a variant, and the folder with their times."""
    right = {"teacher": 180, "a": 160, "b": 140, "a_tuned": 170}
    write_study(tmp_path / "study", right, ["a", "b"], [("a_tuned", "a")])
    times = {
        ("teacher", "onnx_fp32"): [8.0, 16.0, 12.0],
        ("teacher", "eager_fp32"): [20.0],
        ("a", "onnx_fp32"): [4.0, 4.0, 4.0],
        ("a", "onnx_int8"): [1.0, 2.0, 2.0],
    }
    write_times(tmp_path / "pareto", {"teacher": "teacher", "a": "a", "b": "a"}, times)
    return tmp_path / "study", tmp_path / "pareto"


def test_times_and_sizes_stand_beside_scores(measured):
    study, folder = measured
    combinations = combine(ParetoFile.read(folder), folder, study)
    found = {(one.model, one.runtime, one.precision): one for one in combinations.all}
    assert combinations.tasks == TASKS and combinations.is_share and combinations.alike == {"a": ["b", "a_tuned"]}
    student = found["a", "ONNX Runtime", "fp32"]
    assert student.milliseconds == {"1 × 128": 4.0} and student.speedups == {"1 × 128": 3.0} and student.megabytes == 40
    small = found["a", "ONNX Runtime", "int8"]
    assert small.speedups == {"1 × 128": 8.0}, "the median over rounds of 8 / 1, 16 / 2 and 12 / 2, against fp32"
    turned = ParetoFile.read(folder)
    turned.backends = dict(reversed(turned.backends.items()))
    assert [one.speedups for one in combine(turned, folder, study).all if one.precision == "int8"][0] == small.speedups
    assert small.rounds == {"1 × 128": (1.0, 2.0)} and small.worth == student.worth and not small.certain
    assert found["b", "ONNX Runtime", "int8"].milliseconds == small.milliseconds, "it has the same shape"
    assert found["a_tuned", "ONNX Runtime", "int8"].milliseconds == small.milliseconds, "it is the student, fine-tuned"
    assert student.worth.low < student.worth.value < student.worth.high < 100
    assert found["teacher", "PyTorch", "fp32"].worth == (100, 100, 100)
    assert ("a", "PyTorch", "fp32") not in found, "it was not measured there"


def test_a_file_that_was_scored_has_its_own_score(measured):
    study, folder = measured
    for task in TASKS:
        for seed in range(2):
            write_run(study / "own" / task / str(seed), task, 150)
            file = own_scores_file(folder, "study", "onnx_int8", task, "a", seed)
            file.parent.mkdir(parents=True, exist_ok=True)
            (study / "own" / task / str(seed) / "dev_outputs.safetensors").rename(file)
    found = {(one.model, one.precision): one for one in combine(ParetoFile.read(folder), folder, study).all}
    assert found["a", "int8"].certain and found["a", "int8"].is_own and not found["b", "int8"].certain
    assert found["a", "int8"].worth.value < found["a", "fp32"].worth.value
    file.unlink()
    found = {(one.model, one.precision): one for one in combine(ParetoFile.read(folder), folder, study).all}
    assert not found["a", "int8"].certain, "one seed of one task is missing"


def test_the_page_has_a_plot_and_a_table_for_each_runtime(measured, tmp_path):
    study, folder = measured
    result = report.write_report([study, folder], tmp_path / "out")
    headings = [heading for heading in result["sections"] if heading.startswith("Score against")]
    assert headings == ["Score against time and size: ONNX Runtime", "Score against time and size: PyTorch"]
    page = (tmp_path / "out" / "report.html").read_text()
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert page.count("<h3>1 × 128 tokens</h3>") == 2 and page.count("<h3>File size</h3>") == 2
    assert "share of the teacher" in page and "hollow" in page and "b, a_tuned as a" in page
    assert {"pareto_ONNX_Runtime_size.png", "pareto_PyTorch_1___128.png"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    [section, _] = make_pareto_sections(folder, [study], tmp_path / "out")
    lines = {line["point"]: line for line in section.rows}
    assert list(lines)[0] == "a_tuned, int8", "the fastest first, and the better one of those"
    assert lines["a_tuned, fp32"]["frontier"] == "1 × 128, size" and lines["b, fp32"]["frontier"] == "–"
    assert lines["a_tuned, int8"]["frontier"] == "–" and lines["a_tuned, int8"]["scored"] == "PyTorch"
    assert lines["teacher, fp32"]["worth"] == "100.0" and "(" in lines["b, fp32"]["worth"]
    assert lines["a, fp32"]["1 × 128 speed-up"] == "3.00" and lines["a, fp32"]["1 × 128"] == "4.00 (4.00–4.00)"
    assert section.emphasized and all(section.rows[i]["frontier"] != "–" for i in section.emphasized)
    for line in section.rows:
        assert line["point"] in markdown


def test_a_study_without_its_teachers_scores_shows_the_mean_itself(tmp_path):
    write_study(tmp_path / "study", {"a": 160, "b": 140}, ["a", "b", "c"])
    times = {("teacher", "onnx_fp32"): [8.0], ("a", "onnx_fp32"): [4.0]}
    models = {"teacher": "teacher", "a": "a", "b": "a", "c": "a"}
    write_times(tmp_path / "pareto", models, times)
    [section] = make_pareto_sections(tmp_path / "pareto", [tmp_path / "study"], tmp_path)
    assert section.columns["worth"] == "mean of sst2, stsb (%)" and "no scores of the teacher" in section.notes
    assert "can be compared: c." in section.notes and section.rows[-1]["worth"] == "–"
    assert [panel.level for panel in section.panels] == [None, None] and len(section.panels[0].points) == 2


def test_times_without_a_study_are_refused_with_its_name(measured, tmp_path):
    study, folder = measured
    with pytest.raises(UserError, match=r"pareto: holds times and sizes, but no scores; give .* \(study\)"):
        report.write_report([folder], tmp_path / "out")
    write_times(folder, {"teacher": "teacher"}, {})
    with pytest.raises(UserError, match=r"pareto: nothing is measured yet; start benchmarks.inference.pareto again"):
        report.write_report([study, folder], tmp_path / "out")
    (folder / FILE).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        report.write_report([study, folder], tmp_path / "out")
