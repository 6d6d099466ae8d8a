"""Test the measurements for a plot of score against time and size, on a tiny study."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM, DistilBertModel

from benchmarks.inference import pareto, suite
from benchmarks.inference.pareto_models import Model, assign_keys, find_models, read_study
from benchmarks.inference.pareto_scores import score_files
from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.exporters.parity import SAMPLE
from ds_distill.finetune import runs
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.study.pareto_points import FILE, ParetoFile, own_scores_file
from ds_distill.study.plan import Study
from ds_distill.tasks.catalog import TASKS
from ds_distill.tasks.dev_outputs import DevOutputs
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_json, write_summary

SIZES = {"dim": 32, "hidden_dim": 64, "n_heads": 2, "max_position_embeddings": 64}


def save_model(folder, layers: int, cls=DistilBertForMaskedLM) -> None:
    tokenizer = train_wordpiece(SAMPLE.read_text().splitlines(), 300, folder)
    torch.manual_seed(layers)
    cls(DistilBertConfig(vocab_size=len(tokenizer), n_layers=layers, **SIZES)).save_pretrained(folder)


@pytest.fixture
def study(tmp_path):
    """Return the folder of a study of a teacher of two layers and two students of one, one of them without a head."""
    save_model(tmp_path / "T", 2)
    for name, cls in (("a", DistilBertForMaskedLM), ("b_c", DistilBertModel)):
        save_model(tmp_path / "study" / "students" / name / "export", 1, cls)
    data = tmp_path / "data" / "rte"
    data.mkdir(parents=True)
    random = np.random.default_rng(0)
    words = [line.split()[0] for line in SAMPLE.read_text().splitlines() if line.strip()]
    for split, count in (("train", 8), ("validation", 24)):
        rows = [
            {"sentence1": " ".join(random.choice(words, 4)), "sentence2": random.choice(words), "label": number % 2}
            for number in range(count)
        ]
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    plan = Study(
        "ds_configs/few_tokens.yaml",
        str(tmp_path / "T"),
        [],
        [],
        str(tmp_path / "data"),
        {"a": {}, "b c": {}, "later": {}},
        ["rte"],
        seeds=1,
        include_teacher=False,
    )
    write_json(tmp_path / "study" / "study.json", vars(plan))
    return tmp_path / "study"


def run(monkeypatch, *words) -> int:
    monkeypatch.setattr(sys, "argv", ["pareto", *map(str, words)])
    return pareto.main()


@pytest.mark.long
def test_a_study_is_measured_resumed_and_extended(study, tmp_path, monkeypatch):
    output = tmp_path / "out"
    options = ("--output", output, "--backends", "onnx_fp32", "onnx_int8", "--shapes", "1x16", "--seconds", "0.01")
    words = ("--study", study, *options, "--threads", 1)
    real, rounds = suite.take_turn, []

    def interrupt(variant, one, *others):
        rounds.append(one.row.name)
        if len(rounds) == 6:  # in the second round
            raise KeyboardInterrupt
        real(variant, one, *others)

    monkeypatch.setattr(suite, "take_turn", interrupt)
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--rounds", 2)
    before = ParetoFile.read(output)
    assert len(before.turns) == 4 and (output / "files").is_dir(), "one round of the teacher and of one shape is kept"
    assert {entry["model"]: entry["measured"] for entry in before.models} == {
        "teacher": "teacher",
        "a": "a",
        "b c": "a",
    }

    monkeypatch.setattr(suite, "take_turn", real)
    save_model(study / "students" / "later" / "export", 3)
    assert run(monkeypatch, *words, "--rounds", 2) == 0
    after = ParetoFile.read(output)
    assert after.turns[:4] == before.turns and not (output / "files").exists()
    assert all(turn["milliseconds"] > 0 for turn in after.turns)
    times = {
        (key, backend): after.times(key, backend, "1 × 16")
        for key in ("teacher", "a", "later")
        for backend in ("onnx_fp32", "onnx_int8")
    }
    assert all(len(rounds) >= 2 for rounds in times.values())
    assert times["later", "onnx_int8"].keys() <= times["teacher", "onnx_fp32"].keys(), "beside what it is compared with"
    sizes = {key: about["megabytes"] for key, about in after.measured.items()}
    assert sizes["a"]["onnx_int8"] < sizes["a"]["onnx_fp32"] < sizes["teacher"]["onnx_fp32"]

    assert run(monkeypatch, *words, "--rounds", 2) == 0
    assert ParetoFile.read(output).turns == after.turns, "all is measured"
    with pytest.raises(SystemExit):
        run(monkeypatch, "--study", study, *options, "--threads", 2)


def test_quantized_files_are_scored_example_by_example(study, tmp_path):
    settings = FinetuneConfig(epochs=1, learning_rate=1e-3, precision="fp32")
    place = study / "tasks" / "rte" / "a"
    data = str(tmp_path / "data" / "rte")
    model = str(study / "students" / "a" / "export")
    write_summary(runs.finetune(TASKS["rte"], model, place, points=[settings], seeds=[0], data=data), place)
    kept = DevOutputs.load(place / "seed=0" / "dev_outputs.safetensors")
    output, backends = tmp_path / "out", ["onnx_fp32", "onnx_int8"]
    score_files(read_study(study), study, output, backends, 1)
    files = [own_scores_file(output, "study", backend, "rte", "a", 0) for backend in backends]
    exact, small = map(DevOutputs.load, files)
    assert exact.data == small.data == kept.data
    assert all(np.array_equal(exact.arrays[name], values) for name, values in kept.arrays.items())
    assert np.array_equal(small.arrays["dev.labels"], kept.arrays["dev.labels"])
    assert (small.arrays["dev.predicted"] == kept.arrays["dev.predicted"]).mean() > 0.5
    written = files[1].stat().st_mtime_ns
    score_files(read_study(study), study, output, backends, 1)
    assert files[1].stat().st_mtime_ns == written, "it is scored once"


def test_models_of_one_shape_share_a_measurement(study, tmp_path):
    models = find_models([study], [f"other={tmp_path / 'T'}"], None)
    assert [model.name for model in models] == ["teacher", "a", "b c", "other"]
    shapes = {}
    assert assign_keys(models, shapes) == ["teacher", "a", "a", "teacher"] and shapes.keys() == {"teacher", "a"}
    config = json.loads((study / "students" / "b_c" / "export" / "config.json").read_text())
    write_json(study / "students" / "b_c" / "export" / "config.json", config | {"n_heads": 4})
    assert assign_keys(models, {}) == ["teacher", "a", "b c", "teacher"], "as many weights, but other products"
    twice = [
        *models,
        replace(models[0], study="second", folder=models[2].folder),
        Model("second", "a", models[2].folder),
    ]
    assert assign_keys(twice, {})[4:] == ["b c", "b c"]
    other, same = models[2].folder, models[1].folder
    assert assign_keys([Model("second", "a", other)], dict(shapes)) == ["second: a"], "not the a of before"
    assert assign_keys([Model(None, "a", other)], dict(shapes)) == ["a (2)"]
    assert assign_keys([Model("second", "a", same)], dict(shapes)) == ["a"]


@pytest.mark.parametrize(
    ("others", "teacher", "message"),
    [
        (["T"], None, "--model T: give LABEL=FOLDER"),
        (["a=T"], None, "another model is named a as well"),
        (["x=nowhere"], None, "--model x = nowhere: "),
        ([], "nowhere", "--teacher nowhere: "),
    ],
)
def test_a_model_that_is_not_there_is_refused(study, tmp_path, monkeypatch, others, teacher, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        find_models([study], others, teacher)


@pytest.mark.parametrize(
    ("words", "message"),
    [((), "nothing to measure; give --study"), (("--study", "nowhere"), "--study nowhere: no study.json can be read")],
)
def test_a_benchmark_of_nothing_is_refused(tmp_path, monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--output", tmp_path / FILE, *words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("text", ["128", "0x128", "1x", "1 x 128", "-1x2", "1x128x2"])
def test_a_shape_is_two_numbers(text):
    with pytest.raises(Exception, match="must be SEQUENCESxTOKENS"):
        pareto.shape(text)
    assert pareto.shape("32x128") == (32, 128)
