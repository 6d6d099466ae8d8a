"""Test that a trimmed vocabulary splits kept texts as before, and that the model computes the same of them."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    pipeline,
)

import ds_distill
from ds_distill.cli import main
from ds_distill.cli import trim as command
from ds_distill.compression.prune_model import prune_model
from ds_distill.compression.trim_model import trim_model
from ds_distill.compression.trim_tokenizer import trim_tokenizer
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.run_data import prepare_tokens
from ds_distill.exporters.parity import SAMPLE
from ds_distill.jobs.trim import trim
from ds_distill.models.families import get_family
from ds_distill.models.folder import find_model_folder
from ds_distill.models.layer_shapes import LayerShape
from ds_distill.models.saving import save_model_folder
from ds_distill.recipe import Data, Recipe
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_summary
from tests.tiny import FAMILIES, make_embedder, read_embedder, save_encoder

LINES = [line for line in SAMPLE.read_text().splitlines() if line.strip()]
TEXT = st.lists(st.sampled_from(" ".join(LINES).split()), min_size=1, max_size=8).map(" ".join)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {family: save_encoder(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def tokenizers(encoders):
    """One of each kind, and a BPE whose pieces inside a word have a mark."""
    found = {
        name: Tokenizer.from_file(str(encoders[name] / "tokenizer.json")) for name in ("bert", "roberta", "xlm-roberta")
    }
    marked = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##"))
    marked.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["[UNK]"], continuing_subword_prefix="##", show_progress=False
    )
    marked.train_from_iterator(LINES, trainer)
    return found | {"marked": marked}


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "marked"])
@given(kept=st.lists(TEXT, min_size=1, max_size=3), other=TEXT)
@settings(deadline=None, max_examples=60)
def test_kept_texts_are_split_into_the_same_tokens(tokenizers, kind, kept, other):
    tokenizer = tokenizers[kind]
    before = [tokenizer.encode(text) for text in kept]
    content, former = trim_tokenizer(
        json.loads(tokenizer.to_str()), {t for encoding in before for t in encoding.tokens}
    )
    trimmed = Tokenizer.from_str(json.dumps(content))
    for text, encoding in zip(kept, before, strict=True):
        now = trimmed.encode(text)
        assert now.tokens == encoding.tokens and now.offsets == encoding.offsets
        assert [former[number] for number in now.ids] == encoding.ids
    unknown = {"[UNK]", "<unk>"}
    assert unknown & set(trimmed.encode(other).tokens) <= unknown & set(tokenizer.encode(other).tokens), (
        "other texts are split into smaller pieces, not lost"
    )
    assert trimmed.get_vocab_size() == len(former) < tokenizer.get_vocab_size()
    assert sorted(trimmed.get_vocab().values()) == list(range(len(former)))


def test_a_tokenizer_of_another_kind_is_refused():
    content = json.loads(Tokenizer(models.WordLevel({"a": 0}, "a")).to_str())
    with pytest.raises(UserError, match="of the kind WordLevel cannot be trimmed; give one of the kinds WordPiece"):
        trim_tokenizer(content, {"a"})


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_trimmed_model_computes_the_same_of_its_tokens(encoders, family, head):
    load = AutoModelForMaskedLM if head else AutoModel
    model = load.from_pretrained(encoders[family]).eval()
    former = sorted({0, 1, 2, 3, 4, *range(7, model.config.vocab_size, 3)})
    ids = torch.tensor([[former[place] for place in range(5, 15)]])
    with torch.no_grad():
        expected = model(ids)[0]
    trim_model(model, former)
    with torch.no_grad():
        found = model(torch.tensor([list(range(5, 15))]))[0]
    expected = expected[..., former] if head else expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert model.config.vocab_size == len(former)
    if head:
        assert get_family(model).get_decoder(model).weight is model.get_input_embeddings().weight, "still tied"


def test_positions_that_start_behind_padding_stay(encoders):
    model = AutoModelForMaskedLM.from_pretrained(encoders["roberta"])
    with pytest.raises(UserError, match="pad_token_id = 0 after trimming: the positions of roberta start behind"):
        trim_model(model, [1, *range(3, 40)])


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_the_command_writes_a_model_that_answers_as_before(encoders, family, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(LINES[:4]))
    options = SimpleNamespace(
        model=str(encoders[family]), corpus=[str(text)], tokens=None, min_count=1, output=str(tmp_path / "out")
    )
    command.check(options)
    command.check_paths(options)
    summary = command.run(options)
    assert "tokens in its vocabulary" in capsys.readouterr().out and "ds-distill distill" in command.closing(
        options, summary
    )
    export, old = summary["export"], str(encoders[family])
    assert summary["tokens"] < summary["tokens_before"] and summary["text_tokens_dropped"] == 0
    for line in LINES[:4]:
        pieces = [AutoTokenizer.from_pretrained(folder).tokenize(line) for folder in (export, old)]
        assert pieces[0] == pieces[1]
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForMaskedLM.from_pretrained(export)
    assert len(tokenizer) == model.config.vocab_size == summary["tokens"]
    assert model.config.pad_token_id == tokenizer.pad_token_id
    masked = f"{LINES[0].split()[0]} {tokenizer.mask_token}"
    answers, former = (pipeline("fill-mask", model=folder, top_k=60)(masked) for folder in (export, old))
    names = AutoTokenizer.from_pretrained(old).convert_ids_to_tokens([answer["token"] for answer in former])
    kept = [name for name in names if name in tokenizer.get_vocab()]
    found = tokenizer.convert_ids_to_tokens([answer["token"] for answer in answers])
    assert len(kept) > 5 and found[: len(kept)] == kept, "the likeliest of those that are left, in their order"
    card = (Path(export) / "README.md").read_text()
    assert "is split into the same tokens as before" in card and "pipeline" in card
    again = trim(old, tmp_path / "out", corpus=[str(text)])
    assert again["export"] == export, "finished before"
    with pytest.raises(UserError, match="min_count was 1"):
        trim(old, tmp_path / "out", corpus=[str(text)], min_count=2)


def test_a_finished_job_is_found_again_where_its_folder_lies_now(encoders, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(LINES[:4]))
    given = {"corpus": [str(text)]}
    write_summary(trim(str(encoders["bert"]), tmp_path / "before", **given), tmp_path / "before")
    (tmp_path / "before").rename(tmp_path / "after")
    capsys.readouterr()
    found = trim(str(encoders["bert"]), tmp_path / "after", **given)
    assert found["export"] == str(tmp_path / "after" / "export") and "finished before" in capsys.readouterr().err
    shutil.rmtree(found["export"])
    assert trim(str(encoders["bert"]), tmp_path / "after", **given)["export"] == found["export"]
    assert AutoModelForMaskedLM.from_pretrained(found["export"]).config.vocab_size == found["tokens"]


def test_the_example_in_the_card_of_a_pruned_model_runs(encoders, tmp_path, monkeypatch, capsys):
    model = AutoModelForMaskedLM.from_pretrained(encoders["bert"])
    prune_model(model, [LayerShape(1, 8), LayerShape(0, 64)], "first")
    save_model_folder(model, find_model_folder(str(encoders["bert"])).tokenizer, tmp_path / "pruned")
    (tmp_path / "text.txt").write_text("\n\n".join(LINES[:4]))
    export = Path(trim(str(tmp_path / "pruned"), tmp_path / "out", corpus=[str(tmp_path / "text.txt")])["export"])
    (code,) = re.findall("```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(export)
    scope = {}
    exec(code, scope)
    ids = torch.arange(5, 15)[None]
    assert torch.equal(scope["model"](ids).logits, ds_distill.load(export)(ids).logits)


@pytest.mark.parametrize("pruned", [False, True])
def test_a_sentence_embedder_stays_one(encoders, tmp_path, pruned):
    tokenizer = find_model_folder(str(encoders["bert"])).tokenizer
    model = AutoModel.from_pretrained(encoders["bert"])
    if pruned:
        prune_model(model, [LayerShape(1, 8), LayerShape(0, 64)], "first")
    save_model_folder(model, tokenizer, tmp_path / "given")
    make_embedder(tmp_path / "given")
    (tmp_path / "text.txt").write_text("\n\n".join(LINES[:4]))
    export = Path(trim(str(tmp_path / "given"), tmp_path / "out", corpus=[str(tmp_path / "text.txt")])["export"])
    card = (export / "README.md").read_text()
    assert ("- sentence-transformers" in card) == (export / "modules.json").is_file() == (not pruned)
    if pruned:  # which sentence-transformers cannot load
        return
    kinds, pooling = read_embedder(export)
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    assert [key for key, value in pooling.items() if value is True] == ["pooling_mode_cls_token", "include_prompt"]
    assert json.loads((export / "config_sentence_transformers.json").read_text()) == {"prompts": {"query": "q: "}}


def _add_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[NEW]"])
    tokenizer.save_pretrained(folder)


def _replace_tokenizer(folder):
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]", "cls_token": "[CLS]"}
    words = {mark: number for number, mark in enumerate([*marks.values(), "[SEP]", "word"])}
    tokenizer = Tokenizer(models.WordLevel(words, "[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, sep_token="[SEP]", **marks).save_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_add_tokens, r"--model .*: its tokenizer has 301 tokens, but .* call model.resize_token_embeddings"),
        (_replace_tokenizer, "--model .*: a tokenizer of the kind WordLevel cannot be trimmed"),
    ],
)
def test_a_tokenizer_that_cannot_be_trimmed_is_refused_before_any_text_is_read(encoders, tmp_path, change, message):
    model = shutil.copytree(encoders["bert"], tmp_path / "model")
    change(model)
    with pytest.raises(UserError, match=message):
        trim(str(model), tmp_path / "out", corpus=[str(tmp_path / "no text")])
    assert not (tmp_path / "out").exists()


def test_tokens_of_the_held_out_part_are_kept(encoders, tmp_path):
    tokenizer = find_model_folder(str(encoders["bert"])).tokenizer
    (tmp_path / "text.txt").write_text("\n\n".join(LINES))
    recipe = Recipe(data=Data(sequence_length=32, heldout_fraction=0.5, workers=1))
    prepare_tokens([str(tmp_path / "text.txt")], tokenizer, tmp_path / "tokens", recipe)
    used = {number for line in LINES for number in tokenizer(line)["input_ids"]}
    assert (TokenDataset.open(tmp_path / "tokens").token_counts > 0).sum() < len(used), "some are held out alone"
    summary = trim(str(encoders["bert"]), tmp_path / "out", tokens=str(tmp_path / "tokens"))
    trimmed = AutoTokenizer.from_pretrained(summary["export"])
    assert summary["text_tokens_dropped"] == 0
    assert [trimmed.tokenize(line) for line in LINES] == [tokenizer.tokenize(line) for line in LINES]


def test_text_beside_prepared_tokens_is_refused(capsys, tmp_path):
    words = ["--model", "m", "--corpus", "a.txt", "--tokens", "t", "--output", str(tmp_path / "out")]
    assert main(["trim", *words]) == 2
    assert "--corpus a.txt: is not read with --tokens t; leave one" in capsys.readouterr().err


def test_rare_tokens_are_dropped_where_asked_for(encoders, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(LINES))
    summaries = [
        trim(str(encoders["bert"]), tmp_path / str(count), corpus=[str(tmp_path / "text.txt")], min_count=count)
        for count in (1, 3)
    ]
    assert summaries[1]["tokens"] < summaries[0]["tokens"] and 0 < summaries[1]["text_tokens_dropped"]
    assert np.isclose(summaries[1]["text_tokens"], summaries[0]["text_tokens"])
    for times, summary in zip(("", " 3 times or more"), summaries, strict=True):
        assert f"tokens uses{times}. " in (Path(summary["export"]) / "README.md").read_text()


def test_the_head_of_a_task_is_not_dropped_in_silence(encoders, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(encoders["bert"])
    save_model_folder(model, find_model_folder(str(encoders["bert"])).tokenizer, tmp_path / "tuned")
    (tmp_path / "text.txt").write_text("\n\n".join(LINES[:4]))
    trim(str(tmp_path / "tuned"), tmp_path / "out", corpus=[str(tmp_path / "text.txt")])
    assert "is a BertForSequenceClassification, whose head for a task is left out" in capsys.readouterr().err
    trim(str(encoders["bert"]), tmp_path / "whole", corpus=[str(tmp_path / "text.txt")])
    assert "left out" not in capsys.readouterr().err
