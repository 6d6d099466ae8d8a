"""Test a distillation from a teacher on the Hub to a student on the Hub, with a server on this machine."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from ds_distill.exporters.parity import SAMPLE
from tests.hub_server import serve
from tests.start import environment_of, free_port
from tests.tiny import save_encoder

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]
QUICK = ("--training.max_tokens", 600, "--training.global_batch_size", 8, "--training.micro_batch_size", 4)
SHORT = ("--data.sequence_length", 32, "--data.heldout_fraction", 0.2)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    teacher = save_encoder("bert", root / "acme" / "tiny")
    (teacher / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# tiny\n")
    (teacher / "modules.json").write_text(json.dumps(MODULES))
    (teacher / "1_Pooling").mkdir()
    (teacher / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    )
    (root / "ada" / "public").mkdir(parents=True)
    with serve(root) as server:
        yield server


def start(hub, *arguments, **environment):
    """Start a command in a process of its own: a fork of the other tests' process has read these variables already."""
    return subprocess.Popen(
        [sys.executable, "-m", "ds_distill", *map(str, arguments)],
        env=environment_of(**hub.environment | {key: str(value) for key, value in environment.items()}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_ranks_fetch_a_teacher_once_and_upload_its_student(hub, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(SAMPLE.read_text())
    words = ("distill", "--teacher", "acme/tiny", "--corpus", text, "--output", tmp_path / "run", *QUICK, *SHORT)
    job = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "HF_TOKEN": "writes"}
    ranks = [
        start(hub, *words, "--push_to_hub", "student", "--private", RANK=rank, LOCAL_RANK=rank, **job)
        for rank in range(2)
    ]
    (out, err), (_, other) = (rank.communicate() for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], err + other
    assert "acme/tiny: fetched by the first of 2 processes, while the others wait" in err
    assert sum(line.startswith("GET") and "model.safetensors" in line for line in hub.requests) == 1
    summary, repository = json.loads(out.splitlines()[-1]), hub.root / "ada" / "student"
    assert summary["hub"] == f"{hub.environment['HF_ENDPOINT']}/ada/student" and (repository / ".private").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary

    uploaded = {file.relative_to(repository) for file in repository.rglob("*") if file.is_file()}
    exported = tmp_path / "run" / "export"
    assert {str(file) for file in uploaded} > {"model.safetensors", "config.json", "tokenizer.json", "modules.json"}
    for file in uploaded - {(repository / ".private").relative_to(repository)}:
        assert (repository / file).read_bytes() == (exported / file).read_bytes()
    assert json.loads((repository / "1_Pooling" / "config.json").read_text())["pooling_mode_cls_token"]

    card = ModelCard.load(repository / "README.md")
    assert (card.data.base_model, card.data.base_model_relation) == ("acme/tiny", "finetune")
    assert (card.data.license, card.data.language, card.data.model_name) == ("apache-2.0", "en", "student")
    assert card.data.tags == ["ds-distill", "distillation", "sentence-transformers"]
    losses = [result.metric_value for result in card.data.eval_results if result.metric_type == "loss"]
    assert losses[0] in (summary.get("heldout_mask_loss"), summary["heldout_mlm_loss"])
    assert 'name = "ada/student"' in card.text and str(tmp_path) not in card.content


def test_an_upload_that_cannot_be_is_refused_before_anything_is_read(hub, tmp_path):
    cases = (
        ("student", {}, "no token of the Hugging Face Hub on this machine; log in with `hf auth login`"),
        ("a/b/c", {"HF_TOKEN": "writes"}, "not a name of a repository; give OWNER/NAME or NAME"),
        ("student", {"HF_TOKEN": "writes", "HF_HUB_OFFLINE": 1}, "needs the network, which --offline or"),
    )
    words = ("distill", "--teacher", "none", "--corpus", "none", "--output", tmp_path / "run", "--push_to_hub")
    for name, environment, message in cases:
        process = start(hub, *words, name, **environment)
        out, err = process.communicate()
        assert process.returncode == 2 and f"ds-distill: --push_to_hub {name}: {message}" in err and not out
    assert not os.path.exists(tmp_path / "run")
