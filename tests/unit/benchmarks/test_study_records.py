"""Test the records that are kept of a study."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.analysis.study_records import main, without_paths
from ds_distill.study.report import write_report
from ds_distill.tasks.dev_outputs import FILE, DevOutputs
from tests.start import ROOT

RESULTS = sorted((ROOT / "docs/results/studies").glob("*/study.json"))


@pytest.fixture(params=["sst2", "banking"])
def study(tmp_path, request):
    """A study of two students on a task, as its jobs leave it, with what the records leave out."""
    task = request.param
    given = task if task == "sst2" else str(tmp_path / f"{task}.yaml")  # a task of a user's own
    folder = tmp_path / "the study"
    plan = {"base": str(tmp_path / "recipe.yaml"), "teacher": "/models/teacher", "corpus": ["/texts/a.txt", "b.txt"]}
    plan |= {"heldout": [], "data": str(tmp_path / "tasks"), "students": {"a": {}, "b": {"teacher": "/models/other"}}}
    plan |= {
        "tasks": [given],
        "seeds": 2,
        "include_teacher": False,
    }
    write(folder / "study.json", plan)
    random = np.random.default_rng(0)
    labels = random.integers(2, size=100)
    for name, right in (("a", 90), ("b", 80)):
        run = folder / "tasks" / task / name
        seeds = [{"seed": seed, "accuracy": right / 100} for seed in range(2)]
        scores = {"metric": "accuracy", "accuracy": right / 100, "metrics": {"accuracy": right / 100}, "seeds": seeds}
        scores |= {"model": str(folder / "students" / name / "export"), "examples": {"train": 5, "dev": 100}}
        write(run / "summary.json", {"task": task, "parameters": 7, "constant": {"accuracy": 0.5}} | scores)
        write(run / "record.json", {"command": f"ds-distill finetune --model {folder}/x --data '/tasks/sst2'"})
        for seed in range(2):
            predicted = np.where(np.arange(100) < right, labels, 1 - labels)
            arrays = {"dev.predicted": predicted, "dev.labels": labels, "dev.accuracy.constant": np.array([1])}
            (run / f"seed={seed}" / "model").mkdir(parents=True)
            DevOutputs("data", arrays).save(run / f"seed={seed}" / FILE)
            (run / f"seed={seed}" / "model" / "model.safetensors").write_bytes(b"weights")
    return folder


def write(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_report_of_the_records_is_the_studys(study, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["records", str(study), "--output", str(tmp_path / "records")])
    assert main() == 0
    pages = []
    for folder in (study, tmp_path / "records"):
        write_report([folder], tmp_path / f"page of {folder.name}")
        page = (tmp_path / f"page of {folder.name}" / "report.md").read_text(encoding="utf-8")
        pages.append(page.replace(str(folder), "FOLDER").split("## "))
    assert pages[0][:-1] == pages[1][:-1] and any("-10.00 (" in part for part in pages[0])
    files = [file for file in (tmp_path / "records").rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"study.json", "summary.json", "record.json", FILE}
    assert not any(str(tmp_path) in file.read_text("latin-1") for file in files)
    (record,) = (tmp_path / "records/tasks").glob("*/a/record.json")
    command = json.loads(record.read_text())["command"]
    assert command == "ds-distill finetune --model STUDY/x --data 'sst2'"


PATHS = {
    "/a/b/the study": "STUDY",
    "/a/b/the study/tasks/x": "STUDY/tasks/x",
    "/a/b/the study2": "the study2",
    "--output '/a/b/the study/x' --corpus /t/a.txt /t/b.txt": "--output 'STUDY/x' --corpus a.txt b.txt",
    'losses.match=[{"loss": "a/b", "path": "/c/d"}]': 'losses.match=[{"loss": "a/b", "path": "d"}]',
    "teacher /m/t": "teacher t",
    "hf:org/name": "hf:org/name",
    "s3://bucket/a/b": "s3://bucket/a/b",
    "1/2 of 3": "1/2 of 3",
    "": "",
}


@pytest.mark.parametrize("text", PATHS)
def test_absolute_paths_go_and_all_else_stays(text):
    study = Path("/a/b/the study")
    assert without_paths(text, study) == PATHS[text]
    assert without_paths({text: [1, None, {"x": text}]}, study) == {PATHS[text]: [1, None, {"x": PATHS[text]}]}


@pytest.mark.parametrize("mistake", ["no study", "exists"])
def test_what_is_no_study_and_what_exists_is_refused(mistake, study, tmp_path, monkeypatch, capsys):
    given = tmp_path if mistake == "no study" else study
    monkeypatch.setattr(
        "sys.argv", ["records", str(given), "--output", str(study if given == study else tmp_path / "o")]
    )
    with pytest.raises(SystemExit, match="2"):
        main()
    assert ("has no study.json" if mistake == "no study" else "exists; choose another") in capsys.readouterr().err


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.parent.name)
def test_the_records_in_this_repository_can_be_reported(results, tmp_path, capsys):
    sections = write_report([results.parent], tmp_path)["sections"]
    assert "Paired comparisons" in sections
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "is not compared" not in text and "holds neither" not in text
