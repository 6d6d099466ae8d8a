"""Test `ds-distill distill` from text to an exported student, as a user runs it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, AutoModelForMaskedLM, pipeline

from tests.start import ds_distill


@pytest.fixture(scope="module")
def finished(world, common):
    output = world / "undisturbed"
    done = ds_distill("distill", "--teacher", world / "teacher", *common, "--output", output)
    assert done.returncode == 0, done.stderr[-3000:]
    return output, json.loads(done.stdout.splitlines()[-1])


def test_summary(finished, world):
    output, summary = finished
    for key in (
        "tokens",
        "steps",
        "tokens_per_second",
        "loss",
        "kl",
        "mlm",
        "cosine",
        "heldout_mlm_loss",
        "heldout_mlm_accuracy",
        "export",
    ):
        assert key in summary
    counts = {kind: summary[f"heldout_{kind}_count"] for kind in ("mask", "kept", "random", "mlm")}
    assert counts["mask"] + counts["kept"] + counts["random"] == counts["mlm"]
    assert 0.5 < counts["mask"] / counts["mlm"] < 1
    assert summary["heldout_mask_loss"] < summary["start_heldout_mask_loss"]
    for figure in ("mask_loss", "mask_accuracy", "mlm_loss", "mlm_accuracy"):
        assert 0 <= summary[f"heldout_{figure}_se"] < 1 and summary[f"start_heldout_{figure}_se"] is not None
    assert summary["steps"] == 10 and 2300 < summary["tokens"] <= 2560  # the last block of a corpus may be short
    assert json.loads((output / "summary.json").read_text()) == summary
    assert summary["heldout_mlm_loss"] < summary["start_heldout_mlm_loss"]
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((output / "record.json").read_text())
    assert record["command"].startswith("ds-distill distill --teacher ") and len(record["layer_map"]) == 2
    characters = dict(summary["characters"])
    assert (
        characters.pop("read") == len((world / "text.txt").read_text()) == sum(characters.values())
        and characters["tokenized"] > 0
    )
    assert summary["found"]["bad_utf8"] == 0
    assert len({file.stat().st_mode for file in output.rglob("*") if file.is_file()}) == 1, (
        "as the umask gives it, for the group too"
    )


def test_export_loads_everywhere(finished):
    output, summary = finished
    export = summary["export"]
    model = AutoModelForMaskedLM.from_pretrained(export)
    assert model.config.model_type == "distilbert" and model.config.n_layers == 2
    assert AutoModel.from_pretrained(export).config.dim == 32
    assert len(pipeline("fill-mask", model=export)("the [MASK] model", top_k=3)) == 3
    with safe_open(f"{export}/model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert len(names & {"vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"}) == 1, (
        "tied weights belong there once"
    )
    assert not any(name.startswith("teacher") for name in names)
    assert "Fingerprint" in (output / "export" / "README.md").read_text()


@pytest.mark.long
def test_stopped_and_resumed_is_bit_equal(world, common, finished):
    """The second process starts from step 4's checkpoint alone, because the later ones are deleted."""
    output = world / "resumed"
    arguments = [
        "distill",
        "--teacher",
        world / "teacher",
        *common,
        "--output",
        output,
        "--training.save_every",
        4,
    ]
    arguments += ["--training.save_total_limit", 9]
    assert ds_distill(*arguments).returncode == 0
    import shutil

    steps = sorted(path.name for path in (output / "checkpoints").iterdir())
    assert steps == ["step-000000004", "step-000000008", "step-000000010"]
    for later in steps[1:]:
        shutil.rmtree(output / "checkpoints" / later)
    shutil.rmtree(output / "export")
    again = ds_distill(*arguments)
    assert again.returncode == 0, again.stderr[-3000:]
    weights, other = (load_file(folder / "export" / "model.safetensors") for folder in (output, finished[0]))
    assert weights.keys() == other.keys()
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 11))


def test_checkpoint_holds_no_teacher(finished):
    checkpoint = finished[0] / "checkpoints" / "step-000000010"
    state = torch.load(checkpoint / "mp_rank_00_model_states.pt", weights_only=False)
    assert all(name.startswith("model.") for name in state["module"])
    assert sum(".layer." in name and name.endswith("q_lin.weight") for name in state["module"]) == 2


def test_evaluate_gives_the_run_its_own_figures(finished, world):
    output, summary = finished
    models = {summary["export"]: "", str(world / "teacher"): "teacher_"}
    done = ds_distill("evaluate", "--model", *models, "--tokens", output / "tokens", "--output", output / "evaluated")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])["models"]
    assert {row["model"] for row in rows} == set(models)
    for row in rows:
        own = {key: summary[f"{models[row['model']]}{key}"] for key in row if key != "model"}
        assert len(own) == 21
        assert own == pytest.approx({key: row[key] for key in own}, rel=1e-5)


def test_report(finished, tmp_path):
    output, summary = finished
    done = ds_distill("report", output, "--output", tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "report.html").read_text()
    assert json.loads(done.stdout.splitlines()[-1])["report"] == str(tmp_path / "report.html")
    assert f"{summary['parameters']:,} of {summary['teacher_parameters']:,} parameters" in page
    assert f"teacher&#x27;s level: {summary['teacher_heldout_mask_loss']:.4g}" in page
    refused = ds_distill("report", output, "--output", output)
    assert refused.returncode == 2 and "choose another --output" in refused.stderr


@pytest.mark.promise("Markup in a corpus or its name never reaches a report")
def test_markup_stays_in_the_text(world, common, tmp_path):
    text = tmp_path / "<script>alert(1)<" / "img src=x onerror=alert(2)>.txt"
    text.parent.mkdir()
    text.write_text(
        (world / "text.txt").read_text().replace("the small", '<script>alert("small")</script> {"loss": 0}')
    )
    done = ds_distill(
        "distill", "--teacher", world / "teacher", "--corpus", text, *common[2:], "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["loss"] > 0
    for page in ("export/README.md", "summary.json", "curves.json"):
        assert "<script" not in (tmp_path / "out" / page).read_text().lower()


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.long), 3])
def test_export_from_sharded_stages(world, common, finished, stage):
    output = world / f"stage{stage}"
    done = ds_distill(
        "distill",
        "--teacher",
        world / "teacher",
        *common,
        "--output",
        output,
        "--training.deepspeed",
        f"ds_configs/deepspeed/zero{stage}.json",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights, other = (load_file(folder / "export" / "model.safetensors") for folder in (output, finished[0]))
    for name in other:
        torch.testing.assert_close(weights[name], other[name], rtol=1e-3, atol=1e-4)
