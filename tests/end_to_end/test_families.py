"""Test each family of encoders, with its usual kind of tokenizer, from its teacher to an answer."""

import inspect
import json
import os

import onnxruntime
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from ds_distill.data.tokenizer import load_tokenizer, save_tokenizer
from ds_distill.exporters.parity import SAMPLE
from tests.start import Process
from tests.tiny import FAMILIES, save_encoder

SMALL = [
    "--data.sequence_length",
    32,
    "--data.heldout_fraction",
    0.1,
    "--data.workers",
    1,
    "--training.global_batch_size",
    8,
    "--training.micro_batch_size",
    8,
    "--training.max_tokens",
    512,
    "--training.precision",
    "fp32",
    "--training.optimizer",
    "torch",
    "--training.compile",
    "off",
]


def as_the_hub_has_them(family: str, folder) -> None:
    """Give the teacher the older files that the hub has.

    These are BERT's vocab.txt, RoBERTa's two BPE files with weights in fp16, XLM-R's weights in bf16, and the
    vocabularies of BERT, DeBERTa and ModernBERT padded, here to a multiple of 64.
    """
    model = AutoModelForMaskedLM.from_pretrained(folder)
    if family in ("bert", "roberta"):
        save_tokenizer(load_tokenizer(folder), folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).unlink()
        assert (folder / ("vocab.txt" if family == "bert" else "merges.txt")).is_file()
    if family in ("bert", "deberta-v2", "modernbert"):
        model.resize_token_embeddings(pad_to_multiple_of=64)
    if family != "distilbert":
        dtype = {"roberta": torch.float16, "xlm-roberta": torch.bfloat16}.get(family, torch.float32)
        model.to(dtype).save_pretrained(folder)


# The others differ in their tokenizers and weights, which unit tests look at.
QUICK = ("bert",)


@pytest.fixture(
    scope="module",
    params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES],
)
def finished(request, tmp_path_factory):
    """Return (family, folder) in which one process has run all commands, one after another."""
    folder = tmp_path_factory.mktemp(request.param)
    as_the_hub_has_them(request.param, save_encoder(request.param, folder / "teacher"))
    (folder / "text.txt").write_text("\n\n".join(SAMPLE.read_text().splitlines()))
    (folder / "rte").mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence1": f"a first text {i}", "sentence2": "and another", "label": i % 2} for i in range(8)]
        (folder / "rte" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    corpus, tuning = (
        ["--corpus", folder / "text.txt"],
        ["--task", "rte", "--data", folder / "rte", "--finetune.epochs", 1, "--finetune.precision", "fp32"],
    )
    # of a DistilBERT's masked-LM head, which test_commands.py exports
    graph = [] if request.param in QUICK else ["--format", "onnx"]
    commands = [
        ["distill", "--teacher", folder / "teacher", *corpus, "--output", folder / "distilled", *SMALL],
        ["export", "--run", folder / "distilled", "--output", folder / "again", *graph],
        ["pretrain", "--from", folder / "teacher", *corpus, "--output", folder / "pretrained", *SMALL],
        ["finetune", "--model", folder / "distilled", "--output", folder / "tuned", *tuning],
        ["finetune", "--model", folder / "teacher", "--output", folder / "tuned_teacher", *tuning],
        [
            "export",
            "--model",
            folder / "tuned",
            "--output",
            folder / "served",
            "--format",
            "onnx",
            "--data",
            folder / "rte" / "validation.jsonl",
        ],
    ]
    (folder / "commands.json").write_text(json.dumps([[str(word) for word in words] for words in commands]))
    done = Process("tests.end_to_end.commands_worker", folder / "commands.json").wait()
    assert done.returncode == 0, done.stderr[-3000:]
    return request.param, folder


def test_its_students_fill_masks(finished, monkeypatch):
    family, folder = finished
    for name in ("distilled/export", "pretrained/export", "again"):
        monkeypatch.chdir(folder / name)
        fill = pipeline("fill-mask", ".")
        assert fill.model.config.model_type == (
            "distilbert" if family == "bert" and name != "pretrained/export" else family
        )
        text = f"a {fill.tokenizer.mask_token} here"
        assert len(fill(text)) == 5 and len(fill(text + " and more" * 200, tokenizer_kwargs={"truncation": True})) == 5
        weights = load_file("model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float32}
    first, again = (load_file(folder / name / "model.safetensors") for name in ("distilled/export", "again"))
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)


def test_its_tokenizers_give_what_its_models_take(finished, monkeypatch):
    """The check uses the names in the forward method: transformers 5 swallows the other inputs, 4 does not."""
    _, folder = finished
    for config in folder.rglob("config.json"):
        if not (config.parent / "model.safetensors").is_file() or config.parent.name == "teacher":
            continue
        monkeypatch.chdir(config.parent)
        tokenizer, model = (
            AutoTokenizer.from_pretrained("."),
            getattr(transformers, json.loads(config.read_text())["architectures"][0]),
        )
        inputs = tokenizer("a text", "and another", return_tensors="pt")
        assert set(inputs) <= set(inspect.signature(model.forward).parameters), config.parent
        assert tokenizer.model_max_length <= 64
        model.from_pretrained(".")(**inputs)
        assert str(folder) not in "".join(file.read_text() for file in config.parent.glob("*.json")) and os.access(
            "model.safetensors", os.R_OK
        )


def test_its_fine_tuned_models_classify_and_are_served(finished, monkeypatch):
    _, folder = finished
    pair = {"text": "a first text", "text_pair": "and another"}
    for name in ("tuned/seed=0/model", "tuned_teacher/seed=0/model", "served"):
        monkeypatch.chdir(folder / name)
        assert pipeline("text-classification", ".")(pair)["label"] in ("entailment", "not_entailment")
    expected = {entry["label"]: entry["score"] for entry in pipeline("text-classification", ".", top_k=None)(pair)}
    inputs = AutoTokenizer.from_pretrained(".")(pair["text"], pair["text_pair"], return_tensors="np")
    logits = torch.from_numpy(onnxruntime.InferenceSession("onnx/model.onnx").run(["logits"], dict(inputs))[0])
    torch.testing.assert_close(logits.softmax(-1)[0, 0].item(), expected["entailment"], rtol=1e-3, atol=1e-4)
