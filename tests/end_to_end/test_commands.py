"""Test export, evaluate, prepare, pretrain, plan and env, as a user runs them."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    pipeline,
)

from ds_distill.data.tokenizer import train_wordpiece
from tests.start import ds_distill


def last_line(done) -> dict:
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def run(world, common):
    output = world / "a run"
    last_line(
        ds_distill("distill", "--teacher", world / "teacher", *common, "--output", output, "--training.save_every", 4)
    )
    return output


def test_export_of_any_checkpoint(run, tmp_path):
    summary = last_line(ds_distill("export", "--run", run, "--output", tmp_path / "last"))
    assert summary["step"] == 10
    weights, other = load_file(tmp_path / "last" / "model.safetensors"), load_file(run / "export" / "model.safetensors")
    assert weights.keys() == other.keys() and all(torch.equal(weights[name], other[name]) for name in weights)
    last_line(ds_distill("export", "--run", run, "--step", 8, "--output", tmp_path / "eight"))
    earlier = load_file(tmp_path / "eight" / "model.safetensors")
    assert any(not torch.equal(earlier[name], weights[name]) for name in weights)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "eight").config.n_layers == 2
    refused = ds_distill("export", "--run", run, "--step", 7, "--output", tmp_path / "seven")
    assert refused.returncode == 2 and "checkpoints of steps 8, 10" in refused.stderr


def test_export_to_other_runtimes(run, world, tmp_path):
    done = ds_distill(
        "export",
        "--run",
        run,
        "--output",
        tmp_path / "out",
        "--format",
        "onnx",
        "onnx-int8",
        "--text",
        world / "text.txt",
    )
    summary = last_line(done)
    assert summary["step"] == 10 and summary["formats"]["onnx"]["agreement"] == 1 and "| onnx-int8" in done.stdout
    assert {"model.safetensors", "README.md", "onnx", "example_onnx.py"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Measured" in card and "## Formats" in card
    second = last_line(ds_distill("export", "--model", tmp_path / "out", "--format", "torch-export"))
    assert (
        second["formats"]["torch-export"]["max_difference"] < 1e-4
        and (tmp_path / "out" / "onnx" / "model.onnx").is_file()
    )
    assert second["formats"].keys() == {"torch-export"}
    last_line(ds_distill("export", "--run", run, "--output", tmp_path / "out"))
    assert all((tmp_path / "out" / name).is_file() for name in ("onnx/model.onnx", "torch/model.pt2")), (
        "the model is the same"
    )
    for words, message in (
        (("--encoder",), "--encoder: not supported with --run"),
        (("--data", "d"), "--data: not supported with --run"),
        (("--text", "no.txt"), "no.txt"),
    ):
        refused = ds_distill("export", "--run", run, "--output", tmp_path / "new", "--format", "onnx", *words)
        assert refused.returncode == 2 and message in refused.stderr and not (tmp_path / "new").exists()
    mistakes = {
        ("--format", "onnx-int7"): "did you mean onnx-int8",
        (): "is already a Hugging Face folder",
        ("--run", run): "either --run",
    }
    for words, message in mistakes.items():
        refused = ds_distill("export", "--model", tmp_path / "out", *words)
        assert refused.returncode == 2 and message in refused.stderr


def test_evaluate_orders_models(run, world, tmp_path):
    done = ds_distill(
        "evaluate",
        "--model",
        world / "teacher",
        run / "export",
        "--untrained",
        "--tokens",
        run / "tokens",
        "--output",
        tmp_path,
    )
    rows = last_line(done)["models"]
    assert [row["model"] for row in rows][0] == str(run / "export"), "a trained student beats its untrained teacher"
    losses = [row["heldout_mask_loss"] for row in rows]
    assert len(rows) == 3 and losses == sorted(losses)
    assert json.loads((tmp_path / "summary.json").read_text()) == {"models": rows}
    assert "| model" in done.stdout and f"{losses[0]:.3f} ± {rows[0]['heldout_mask_loss_se']:.3f}" in done.stdout


def test_evaluate_reads_a_text_anew_for_another_vocabulary(world, tmp_path):
    text = [
        "--corpus",
        world / "text.txt",
        "--data.sequence_length",
        32,
        "--data.heldout_fraction",
        0.5,
        "--output",
        tmp_path / "out",
    ]
    train_wordpiece(["another text with other words in it " * 20], 256, tmp_path / "other")
    BertForMaskedLM(
        BertConfig(vocab_size=256, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    ).save_pretrained(tmp_path / "other")
    counts = []
    for model in (world / "teacher", tmp_path / "other"):
        assert last_line(ds_distill("evaluate", "--model", model, *text))["heldout_mlm_loss"] > 0
        counts.append(json.loads((tmp_path / "out" / "tokens" / "manifest.json").read_text())["real_tokens"])
    assert counts[0] != counts[1]
    none = ds_distill("evaluate", "--model", world / "teacher", *text, "--data.heldout_fraction", 0)
    assert none.returncode == 2 and "no held-out text; set data.heldout_fraction above 0" in none.stderr


def test_prepare_says_what_it_made(world, tmp_path):
    done = ds_distill(
        "prepare", "--tokenizer", world / "teacher", "--corpus", world / "text.txt", "--output", tmp_path / "tokens"
    )
    summary = last_line(done)
    assert summary["blocks"]["train"] > 0 and summary == json.loads((tmp_path / "tokens" / "summary.json").read_text())


def test_env_needs_nothing(tmp_path):
    """Without GPU, compiler and network, env reports that they are missing."""
    summary = last_line(ds_distill("env", PATH="/nonexistent", CXX="none"))
    kernels = {row["kernel"]: row for row in summary["kernels"]}
    assert not kernels["DeepSpeed FusedAdam"]["active"] and "compiler" in kernels["DeepSpeed FusedAdam"]["why"]
    assert kernels["torch fused AdamW"]["active"]
    assert summary["versions"]["deepspeed"]


def test_without_a_compiler_torch_takes_over(world, common, tmp_path):
    done = ds_distill(
        "distill",
        "--teacher",
        world / "teacher",
        *common,
        "--output",
        tmp_path / "out",
        PATH="/nonexistent",
        CXX="none",
    )
    assert last_line(done)["steps"] == 10
    assert done.stderr.count("torch's fused AdamW") == 1 and "no C++ compiler" in done.stderr
    done = ds_distill(
        "distill",
        "--teacher",
        world / "teacher",
        *common,
        "--output",
        tmp_path / "two",
        "--training.optimizer",
        "deepspeed",
        PATH="/nonexistent",
        CXX="none",
    )
    assert done.returncode == 2 and "no C++ compiler" in done.stderr and "Traceback" not in done.stderr


def test_an_encoder_without_a_head_is_given_one_and_teaches(world, common, tmp_path):
    """The encoder is that of a sentence-embedding model, saved without its masked-LM head."""
    encoder = tmp_path / "encoder"
    model = AutoModel.from_pretrained(world / "teacher")
    model.save_pretrained(encoder)
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(encoder)
    refused = ds_distill("distill", "--teacher", encoder, *common, "--output", tmp_path / "no")
    assert refused.returncode == 2 and f"ds-distill pretrain --from {encoder}" in refused.stderr
    head_only = last_line(
        ds_distill(
            "pretrain",
            "--from",
            encoder,
            *common,
            "--output",
            tmp_path / "head",
            "--training.encoder_learning_rate",
            0,
            "--training.learning_rate",
            0.01,
        )
    )
    assert head_only["heldout_mlm_loss"] < head_only["start_heldout_mlm_loss"]
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "head" / "export")
    for name, parameter in model.named_parameters():
        assert "pooler" in name or torch.equal(student.bert.get_parameter(name), parameter)
    both = last_line(
        ds_distill(
            "pretrain",
            "--from",
            tmp_path / "head" / "export",
            *common,
            "--output",
            tmp_path / "both",
            "--training.encoder_learning_rate",
            0.002,
            "--training.learning_rate",
            0.01,
        )
    )
    assert both["heldout_mlm_loss"] < head_only["heldout_mlm_loss"]
    last_line(
        ds_distill("distill", "--teacher", tmp_path / "both" / "export", *common, "--output", tmp_path / "student")
    )


def test_a_roberta_teacher_in_lines_mode_and_a_narrower_student(world, tmp_path):
    lines = (world / "text.txt").read_text().split("\n\n")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    backend.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer = RobertaTokenizer(tokenizer_object=backend)
    tokenizer.save_pretrained(tmp_path / "teacher")
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=34,
        type_vocab_size=1,
    )
    RobertaForMaskedLM(config).save_pretrained(tmp_path / "teacher")
    (tmp_path / "lines.jsonl").write_text(
        "".join(json.dumps({"body": line[: 20 + 7 * i % 200]}) + "\n" for i, line in enumerate(lines))
    )
    options = [
        "--data.mode",
        "lines",
        "--data.sequence_length",
        32,
        "--data.whole_word_masking",
        "true",
        "--data.heldout_fraction",
        0.05,
        "--student.hidden_size",
        16,
        "--training.global_batch_size",
        8,
        "--training.micro_batch_size",
        4,
        "--training.max_tokens",
        2560,
        "--training.eval_every",
        5,
    ]
    summary = last_line(
        ds_distill(
            "distill",
            "--teacher",
            tmp_path / "teacher",
            "--corpus",
            f"{tmp_path / 'lines.jsonl'}#body",
            "--heldout",
            world / "text.txt",
            "--output",
            tmp_path / "out",
            *options,
        )
    )
    assert summary["heldout_mlm_loss"] < summary["start_heldout_mlm_loss"] and "text" in summary["heldout_sets"]
    student = AutoModelForMaskedLM.from_pretrained(summary["export"])
    assert (
        isinstance(student, RobertaForMaskedLM)
        and student.config.hidden_size == 16
        and student.config.num_hidden_layers == 2
    )
    assert pipeline("fill-mask", summary["export"])("the small <mask> reads")[0]["score"] > 0
    curves = json.loads((tmp_path / "out" / "curves.json").read_text())
    assert [row["step"] for row in curves["heldout"]["text"]][:2] == [0, 5]
    last_line(ds_distill("export", "--run", tmp_path / "out", "--output", tmp_path / "again"))
    weights, other = (load_file(tmp_path / name / "model.safetensors") for name in ("again", "out/export"))
    assert all(torch.equal(weights[name], other[name]) for name in other)


def test_plan_and_the_largest_micro_batch_that_fits(world, common, tmp_path):
    done = ds_distill(
        "estimate",
        "--teacher",
        world / "teacher",
        "--data.sequence_length",
        32,
        "--training.global_batch_size",
        8,
        "--training.micro_batch_size",
        4,
        "--training.max_tokens",
        2560,
        "--ranks",
        2,
        "--memory_gib",
        16,
    )
    summary = last_line(done)
    assert (summary["steps"], summary["tokens_per_step"], summary["largest_micro_batch"]) == (10, 256, 4) and summary[
        "tokens_per_second"
    ] > 0
    assert (
        [row["stage"] for row in summary["stages"]] == [0, 1, 2, 3]
        and "fits" in summary["advice"]
        and "ZeRO stage" in done.stdout
    )
    small = last_line(
        ds_distill(
            "estimate",
            "--teacher",
            world / "teacher",
            "--data.sequence_length",
            32,
            "--memory_gib",
            0.1,
            "--tokens_per_second",
            10,
        )
    )
    assert small["largest_micro_batch"] == 0 and "does not fit at any ZeRO stage" in small["advice"]
    done = ds_distill(
        "distill", "--teacher", world / "teacher", *common, "--output", tmp_path, "--training.micro_batch_size", "auto"
    )
    assert last_line(done)["steps"] == 10 and "micro-batch: 8 sequences" in done.stderr
