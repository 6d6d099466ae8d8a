"""Test runs with teachers that have no masked-LM head, and with several teachers, from text to what is made of them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaModel,
)

from tests.end_to_end.test_resume import assert_same_run
from tests.start import Process, ds_distill, wait_for
from tests.tiny import byte_level_tokenizer

BARE = ("--losses.kl", 0, "--losses.mlm", 0)
TERMS_BY_STAGE = "[{share: 0.5, losses: {cosine: 0, match: [{loss: relation, layers: last}]}}, {share: 0.5}]"
WITHIN = ("--losses.cosine", 0, "--losses.match", "[{loss: mse, layers: [[0, 1], [1, 2]]}]")


@pytest.fixture(scope="module")
def others(world, tmp_path_factory):
    """Teachers beside that of `world`: a classifier, another width and depth, and a sentence embedder."""
    folder = tmp_path_factory.mktemp("others")
    config = BertConfig.from_pretrained(world / "teacher")
    torch.manual_seed(1)
    for name, kind, changes in (
        ("classifier", BertForSequenceClassification, {"num_labels": 3}),
        ("wide", BertForMaskedLM, {"hidden_size": 48, "num_hidden_layers": 3}),
    ):
        shutil.copytree(world / "teacher", folder / name, ignore=shutil.ignore_patterns("*.safetensors"))
        kind(BertConfig(**config.to_dict() | changes)).save_pretrained(folder / name)
    byte_level_tokenizer(folder / "embedder")
    roberta = RobertaConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=34,
        type_vocab_size=1,
        pad_token_id=1,
    )
    RobertaModel(roberta).save_pretrained(folder / "embedder")
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    (folder / "embedder" / "modules.json").write_text(json.dumps(modules))
    (folder / "embedder" / "1_Pooling").mkdir()
    (folder / "embedder" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    return folder


def test_a_student_of_teachers_without_heads(world, common, others, tmp_path, monkeypatch):
    """A classifier's and a sentence embedder's student: trained, reloaded, fine-tuned, exported, reported."""
    (tmp_path / "rte").mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence1": f"a first text {i}", "sentence2": "and another", "label": i % 2} for i in range(8)]
        (tmp_path / "rte" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run, embedder, tuning = tmp_path / "run", tmp_path / "embedder", ["--finetune.epochs", 1]
    tuning += ["--task", "rte", "--data", tmp_path / "rte", "--finetune.precision", "fp32"]
    commands = [
        ["distill", "--teacher", others / "classifier", *common, "--output", run, *BARE, *WITHIN],
        ["distill", "--teacher", others / "embedder", *common, "--output", embedder, *BARE, "--stages", TERMS_BY_STAGE],
        ["finetune", "--model", run, "--output", tmp_path / "tuned", *tuning],
        ["export", "--run", run, "--output", tmp_path / "again"],
        ["export", "--model", embedder, "--output", tmp_path / "served", "--format", "torch-export"],
        ["report", run, embedder, "--output", tmp_path / "report"],
    ]
    (tmp_path / "commands.json").write_text(json.dumps([[str(word) for word in words] for words in commands]))
    done = Process("tests.end_to_end.commands_worker", tmp_path / "commands.json").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "up to layer 2, the highest that is compared" in " ".join(done.stderr.split())

    summary = json.loads((run / "summary.json").read_text())
    assert summary["heldout_mse"] > 0 and summary["heldout_mse_se"] > 0 and summary["heldout_count"] > 100
    assert not any("mask" in key or "mlm" in key or key.startswith("teacher_heldout") for key in summary)
    assert summary["kept"] is None and summary["teacher_parameters"] > summary["parameters"]
    curves = json.loads((run / "curves.json").read_text())
    assert curves["heldout"][""][-1]["mse"] == summary["heldout_mse"]
    rows = json.loads((embedder / "curves.json").read_text())["heldout"][""]
    assert "relation" in rows[0] and "cosine" in rows[-1] and not {"cosine"} & rows[0].keys()
    assert json.loads((run / "export" / "config.json").read_text())["architectures"] == ["DistilBertModel"]
    model, tokenizer = (auto.from_pretrained(run / "export") for auto in (AutoModel, AutoTokenizer))
    assert model(**tokenizer("a small text", return_tensors="pt")).last_hidden_state.shape[-1] == 32
    card = (run / "export" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card and "fill-mask" not in card and "AutoModel.from_pretr" in card
    # the example in the card runs
    monkeypatch.chdir(embedder / "export")
    card = (embedder / "export" / "README.md").read_text()
    assert "add_pooling_layer=False" in card and (embedder / "export" / "1_Pooling" / "config.json").is_file()
    exec(card.split("```python\n")[1].split("```")[0], {})
    first, again = (load_file(folder / "model.safetensors") for folder in (run / "export", tmp_path / "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
    tuned = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned" / "seed=0" / "model")
    assert tuned.config.num_hidden_layers == 2
    assert "held-out terms" in (tmp_path / "report" / "report.html").read_text()


def test_a_student_of_another_class(world, common, others, tmp_path):
    """It takes over the teacher's layers where both have such, and else the word embeddings; stock classes load it."""
    relations = ["--losses.cosine", 0, "--losses.match", "[{loss: relation, layers: last}]"]
    runs = {"bert": others / "embedder", "modernbert": others / "embedder", "distilbert": world / "teacher"}
    commands = [
        ["distill", "--teacher", teacher, *common, "--output", tmp_path / family, "--student.family", family]
        + [*BARE, *(relations if family != "distilbert" else [])]
        for family, teacher in runs.items()
    ]
    (tmp_path / "commands.json").write_text(json.dumps([[str(word) for word in words] for words in commands]))
    done = Process("tests.end_to_end.commands_worker", tmp_path / "commands.json").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "student: a modernbert of a roberta; new in it: layers" in " ".join(done.stderr.split())
    started = {
        "bert": "Its layers started from these of the teacher, which has 2, counted from 0: 0",
        "modernbert": "It started from random weights but for the word embeddings, which are the teacher's",
        "distilbert": "Its layers started from these of the teacher",
    }
    for family in runs:
        export = tmp_path / family / "export"
        assert started[family] in (export / "README.md").read_text()
        model, tokenizer = (auto.from_pretrained(export) for auto in (AutoModel, AutoTokenizer))
        assert model.config.model_type == family and model.config.pad_token_id == tokenizer.pad_token_id
        assert model(**tokenizer("a small text", return_tensors="pt")).last_hidden_state.shape[-1] == 32
        assert tokenizer.model_max_length <= model.config.max_position_embeddings


def test_what_a_teacher_without_a_head_cannot_do_is_one_sentence(world, common, others, tmp_path):
    done = ds_distill("distill", "--teacher", others / "classifier", *common, "--output", tmp_path / "run")
    assert done.returncode == 2 and "or set losses.kl = 0 and losses.mlm = 0 to distill its encoder" in done.stderr
    strangers = ["--teacher", world / "teacher", others / "embedder", *BARE]
    done = ds_distill("distill", *strangers, *common, "--output", tmp_path / "run")
    assert done.returncode == 2 and "its tokenizer has the fingerprint" in done.stderr
    idle = ["--teacher", world / "teacher", others / "wide", *BARE]
    done = ds_distill("distill", *idle, *common, "--output", tmp_path / "run")
    assert done.returncode == 2 and f"teacher {others / 'wide'} teaches nothing: losses.kl is 0" in done.stderr
    assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.promise(
    "Killed at any moment and started again, a run ends bit-equal: "
    "losses, weights, learning rate, held-out history, TensorBoard"
)
@pytest.mark.parametrize("kind", ["two teachers", pytest.param("bare encoder", marks=pytest.mark.long)])
def test_a_killed_run_ends_bit_equal(world, common, others, tmp_path, kind):
    """With the mean of two teachers, relations first and logits of masked sequences later; and of bare encoders."""
    words = ["distill", "--teacher", others / "classifier", others / "wide", *common, "--training.save_every", 3]
    words += [*BARE, "--losses.match", "[{loss: relation, layers: [[1, 2]]}]", "--losses.teacher_weights", "2,1"]
    if kind == "two teachers":
        words = ["distill", "--teacher", world / "teacher", others / "wide", *common, "--training.save_every", 3]
        relations = "{kl: 0, mlm: 0, cosine: 0, match: [{loss: relation, layers: [[1, 2]]}]}"
        words += ["--stages", f"[{{share: 0.5, losses: {relations}}}, {{share: 0.5}}]", "--data.clean_fraction", 0.5]
    undisturbed = Process("ds_distill", *words, "--output", tmp_path / "one").wait()
    assert undisturbed.returncode == 0, undisturbed.stderr[-3000:]
    killed = Process("ds_distill", *words, "--output", tmp_path / "other")
    wait_for(lambda: list((tmp_path / "other" / "checkpoints").glob("step-*")) or killed.poll() is not None, killed)
    killed.kill()
    done = Process("ds_distill", *words, "--output", tmp_path / "other").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "one", tmp_path / "other")
    identity = json.loads((tmp_path / "one" / "run.json").read_text())
    assert identity.get("student.head") == ("none" if kind == "bare encoder" else None)
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())
    if kind == "two teachers":
        assert " + " in identity["teacher"] and summary["teacher_heldout_mask_loss"] > 0 and summary["kl"] > 0
        assert "`teacher` and `wide`" in (tmp_path / "one" / "export" / "README.md").read_text()
