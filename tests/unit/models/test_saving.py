"""Test every folder that is written.

It loads by its name alone, for everyone who may read it, in transformers 4 as in 5, and its
tokenizer fits its model. `python -m tests.clients` runs the same folders in the programs
themselves.
"""

import inspect
import json
import os
import re

import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaTokenizer,
    pipeline,
)

from ds_distill.data.portable_tokenizer import READS_JSON_ONLY, SHARED_CLASSES
from ds_distill.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_fingerprint, train_wordpiece
from ds_distill.exporters.huggingface import export
from ds_distill.exporters.model import load_source
from ds_distill.finetune import runs
from ds_distill.finetune.config import FinetuneConfig
from ds_distill.models.families import get_family
from ds_distill.models.loading import load_masked_lm
from ds_distill.models.saving import save_model_folder
from ds_distill.models.student import build_student
from ds_distill.models.tokenizer_fit import check_vocabulary, fit_tokenizer
from ds_distill.reporting.card_sections import MADE_WITH
from ds_distill.tasks.catalog import get_task
from ds_distill.utils.errors import UserError
from tests.unit.models.test_teacher import FAMILIES, randomised

TEXTS = ["the small model reads what a large one wrote .", "Every Word of text, it's naïve", "一 mark and another!"] * 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def wordpiece(**changes) -> BertTokenizerFast:
    words = sorted({word for text in TEXTS for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    entries = dict.fromkeys(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    )
    return BertTokenizerFast(
        vocab={entry: number for number, entry in enumerate(entries)}, **{"do_lower_case": True, **changes}
    )


def byte_level() -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=SPECIAL,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return backend


def byte_level_of_roberta(**changes) -> RobertaTokenizer:
    model = json.loads(byte_level().to_str())["model"]
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], **changes)


def unigram() -> XLMRobertaTokenizer:
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    backend.train_from_iterator(
        TEXTS,
        trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL[:4], unk_token="<unk>", show_progress=False),
    )
    return XLMRobertaTokenizer(vocab=[tuple(entry) for entry in json.loads(backend.to_str())["model"]["vocab"]])


def without_class() -> PreTrainedTokenizerFast:
    """Return a tokenizer as in many hub folders: tokenizer.json, and a class that says nothing."""
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    return PreTrainedTokenizerFast(tokenizer_object=wordpiece().backend_tokenizer, **names)


def used(tokenizer):
    """Return a tokenizer that has truncated and padded, which leaves its settings changed."""
    tokenizer("a text", truncation=True, max_length=5, padding="max_length")
    return tokenizer


TOKENIZERS = {
    "uncased": wordpiece,
    "cased": lambda: wordpiece(do_lower_case=False, strip_accents=False),
    "left": lambda: wordpiece(padding_side="left", truncation_side="left", model_max_length=512),
    "extra tokens": lambda: wordpiece(additional_special_tokens=["[ONE]", "[TWO]"]),
    "cleaning up": lambda: wordpiece(clean_up_tokenization_spaces=True),
    "without class": without_class,
    "used": lambda: used(wordpiece()),
    "byte-level": lambda: byte_level_of_roberta(clean_up_tokenization_spaces=True),
    "unigram": unigram,
}


def bert(size, kind=BertForMaskedLM, **changes):
    return kind(BertConfig(vocab_size=size, max_position_embeddings=20, **SIZES, **changes))


def distilbert(size):
    return DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=size, max_position_embeddings=20, dim=32, n_layers=2, n_heads=2, hidden_dim=48)
    )


def roberta(size, kind=RobertaForMaskedLM, config=RobertaConfig, types=1):
    return kind(config(vocab_size=size, max_position_embeddings=22, type_vocab_size=types, **SIZES))


MODELS = {
    "bert": bert,
    "distilbert": distilbert,
    "roberta": roberta,
    "roberta of two token types": lambda size: roberta(size, types=2),
    "xlm-roberta": lambda size: roberta(size, XLMRobertaForMaskedLM, XLMRobertaConfig),
    "bert, in bf16": lambda size: bert(size).bfloat16().float(),
    "bert classifier": lambda size: bert(size, BertForSequenceClassification, num_labels=3),
}


def strings_in(folder) -> str:
    return "\n".join(file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file())


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("make", MODELS)
def test_what_a_written_tokenizer_gives_its_model_takes(tmp_path, monkeypatch, make, kind):
    """The check uses the names in the forward method: transformers 5 swallows the other inputs, 4 does not."""
    tokenizer = TOKENIZERS[kind]()
    save_tokenizer(tokenizer, tmp_path / "teacher")
    tokenizer = load_tokenizer(tmp_path / "teacher")
    model = MODELS[make](len(tokenizer)).eval()
    before = [tokenizer(text)["input_ids"] for text in TEXTS]
    save_model_folder(model, tokenizer, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    reloaded = AutoTokenizer.from_pretrained("model")
    assert [reloaded(text)["input_ids"] for text in TEXTS] == before
    positions = get_family(model).positions(model.config)
    inputs = reloaded("a text", "word", return_tensors="pt")
    assert (
        set(inputs) <= set(inspect.signature(type(model).forward).parameters)
        and inputs["input_ids"].shape[1] <= positions
    )
    model(**inputs)
    long = reloaded("of text " * 100, truncation=True, return_tensors="pt")
    assert long["input_ids"].shape[1] == positions == reloaded.model_max_length, (
        "cut to the model's positions without being told"
    )
    torch.testing.assert_close(model(**long).logits, type(model).from_pretrained("model")(**long).logits)
    ids = reloaded(["a", "a small text"], padding=True)["attention_mask"]
    assert ids[0][-1] == 0, "padding stands behind the text: before it, it would move the text to other positions"
    assert reloaded.truncation_side == tokenizer.truncation_side


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_transformers_4_reads_a_written_tokenizer_in_the_same_way(tmp_path, kind):
    """The files have what its releases need and nothing that they cannot read (tried in 4.46.3 and 4.57.6)."""
    tokenizer = TOKENIZERS[kind]()
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] in (*SHARED_CLASSES, READS_JSON_ONLY)
    assert isinstance(config.get("extra_special_tokens", {}), dict), "a list is an AttributeError there"
    assert config.get("additional_special_tokens", []) == (["[ONE]", "[TWO]"] if kind == "extra tokens" else [])
    for key in (
        "model_input_names",
        "padding_side",
        "truncation_side",
        "clean_up_tokenization_spaces",
        "model_max_length",
    ):
        assert key in config, "its default is another one there"
    assert config["clean_up_tokenization_spaces"] is (kind == "cleaning up")
    if config["tokenizer_class"] == "BertTokenizer":
        normalizer = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["normalizer"]
        assert (config["do_lower_case"], config["strip_accents"], config["tokenize_chinese_chars"]) == (
            normalizer["lowercase"],
            normalizer["strip_accents"],
            normalizer["handle_chinese_chars"],
        )
        lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
        assert lines == [tokenizer.convert_ids_to_tokens(number) for number in range(len(lines))], (
            "read with use_fast=False"
        )
    if kind == "byte-level":
        assert (
            json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")) == tokenizer.get_vocab()
            and (tmp_path / "merges.txt").is_file()
        )
    written = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert written["truncation"] is written["padding"] is None
    assert tokenizer_fingerprint(load_tokenizer(tmp_path)) == tokenizer_fingerprint(tokenizer)


def test_a_vocabulary_with_gaps_has_no_vocab_txt(tmp_path):
    """The ids in vocab.txt are the line numbers."""
    tokenizer = wordpiece()
    vocabulary = {token: number + (number > 10) for token, number in tokenizer.get_vocab().items()}
    save_tokenizer(BertTokenizerFast(vocab=vocabulary), tmp_path)
    assert not (tmp_path / "vocab.txt").exists() and load_tokenizer(tmp_path).get_vocab() == vocabulary


@pytest.mark.parametrize("make", [bert, distilbert, roberta])
def test_a_model_without_a_tokenizer_is_not_given_an_empty_one(tmp_path, make):
    """transformers 5 makes one from special tokens alone, which reads every text as [UNK]."""
    make(44).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match="the folder contains no tokenizer; give one that contains tokenizer.json or vocab.txt"
    ):
        load_tokenizer(tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    length=st.one_of(st.integers(-1, 10**6), st.just(10**30), st.floats(1, 1e30)),
    side=st.sampled_from(["left", "right"]),
    names=st.sets(st.sampled_from(["input_ids", "token_type_ids", "attention_mask", "special_tokens_mask"])),
    make=st.sampled_from([bert, distilbert, roberta]),
)
def test_a_tokenizer_of_any_settings_fits_its_model_afterwards(length, side, names, make):
    tokenizer = wordpiece(model_max_length=length, padding_side=side, model_input_names=sorted(names))
    with torch.device("meta"):
        model = make(len(tokenizer))
    fit_tokenizer(tokenizer, model)
    assert tokenizer.model_input_names == ["input_ids", "attention_mask", *(["token_type_ids"] if make is bert else [])]
    assert (
        tokenizer.model_max_length == (min(20, int(length)) if length >= 1 else 20)
        and tokenizer.padding_side == "right"
    )
    assert isinstance(tokenizer.model_max_length, int)


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        tokenizer = wordpiece()
        save_model_folder(bert(len(tokenizer)), tokenizer, tmp_path / "model")
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    assert "model.safetensors" in modes and set(modes.values()) == {0o666 & ~mask}, modes


def test_a_distilbert_tells_its_sizes_by_their_common_names_too(tmp_path):
    """Servers read the sizes from config.json and do not know `dim`."""
    tokenizer = wordpiece()
    save_model_folder(distilbert(len(tokenizer)), tokenizer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [
        config[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "dim", "n_layers", "n_heads")
    ] == [32, 2, 2] * 2
    model = load_masked_lm(str(tmp_path))
    assert model.config.dim == 32 and build_student(model, num_layers=1).config.n_layers == 1


def test_code_that_is_not_in_the_folder_is_not_named(tmp_path):
    tokenizer = wordpiece()
    model = roberta(len(tokenizer))
    model.config.auto_map = {"AutoModel": "modeling_own.Own"}
    save_model_folder(model, tokenizer, tmp_path)
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_tied_weight_may_come_under_either_name(tmp_path_factory, data):
    """The families differ in which name comes first and stands for both.

    XLM-R registers its decoder before its embeddings.
    """
    model = data.draw(st.sampled_from(FAMILIES))()
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    assert any(len(names) > 1 for names in names_of.values())
    weights = {
        data.draw(st.sampled_from(names)): model.get_parameter(names[0]).detach().clone() for names in names_of.values()
    }
    output = tmp_path_factory.mktemp("tied") / "out"
    tokenizer = wordpiece()
    export(weights, model, tokenizer, output, f"{MADE_WITH}\n")
    ids = torch.arange(20)[None] + 3
    assert torch.equal(load_masked_lm(str(output))(ids).logits, model(ids).logits)
    lost = data.draw(st.sampled_from(sorted(weights)))
    with pytest.raises(RuntimeError, match="missing weights"):
        export(
            {name: value for name, value in weights.items() if name != lost}, model, tokenizer, output, f"{MADE_WITH}\n"
        )


def test_an_untied_decoder_is_exported_as_it_is(tmp_path):
    tokenizer = wordpiece()
    model = randomised(bert(len(tokenizer), tie_word_embeddings=False))
    export(
        {name: value.detach() for name, value in model.named_parameters()},
        model,
        tokenizer,
        tmp_path / "out",
        MADE_WITH,
    )
    reloaded = load_masked_lm(str(tmp_path / "out"))
    assert not torch.equal(reloaded.get_output_embeddings().weight, reloaded.get_input_embeddings().weight)


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    """A tokenizer with one token more than its model, and a small task."""
    folder = tmp_path_factory.mktemp("added")
    tokenizer = wordpiece()
    bert(len(tokenizer)).save_pretrained(folder)
    tokenizer.add_tokens(["anewword"])
    tokenizer.save_pretrained(str(folder))
    (folder / "data").mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence": f"{'small' if i % 2 else 'large'} text anewword", "label": i % 2} for i in range(8)]
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_tokenizer_with_more_tokens_than_the_model_is_one_sentence(added, tmp_path):
    message = (
        r"--model .*: its tokenizer has \d+ tokens, but the model has \d+: anewword were added; "
        "call model.resize_token_embeddings"
    )
    with pytest.raises(UserError, match=message):
        load_source(str(added))
    with pytest.raises(UserError, match=message):
        runs.finetune(
            get_task("sst2"),
            str(added),
            tmp_path / "out",
            points=[FinetuneConfig(epochs=1)],
            seeds=[0],
            data=str(added / "data"),
        )
    assert not (tmp_path / "out").exists()


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(5, 60), min_size=1), st.integers(1, 64))
def test_the_largest_id_counts_not_the_number_of_tokens(ids, size):
    vocabulary = {token: number for number, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])} | {
        f"t{i}": i for i in ids
    }
    tokenizer, config = BertTokenizerFast(vocab=vocabulary), BertConfig(vocab_size=size)
    if max(ids) < size:
        check_vocabulary(tokenizer, config, "--model m")
    else:
        with pytest.raises(
            UserError, match=f"--model m: its tokenizer has {max(ids) + 1} tokens, but the model has {size}"
        ):
            check_vocabulary(tokenizer, config, "--model m")


def test_a_fine_tuned_folder_is_as_complete(added, tmp_path, monkeypatch):
    """This covers scores, texts beyond the model's length, and a card that does not reveal where it was made."""
    folder = tmp_path / "student"
    tokenizer = train_wordpiece(TEXTS, 200, folder)  # its tokenizer promises 512 tokens
    distilbert(len(tokenizer)).save_pretrained(folder)
    summary = runs.finetune(
        get_task("sst2"),
        str(folder),
        tmp_path / "out",
        points=[FinetuneConfig(epochs=1, batch_size=4, precision="fp32")],
        seeds=[0],
        data=str(added / "data"),
    )
    model_folder = tmp_path / "out" / "seed=0" / "model"
    assert summary["export"] == str(model_folder)
    assert {file.stat().st_mode & 0o777 for file in model_folder.iterdir()} == {
        (model_folder / "config.json").stat().st_mode & 0o777
    }
    assert str(tmp_path) not in strings_in(model_folder) and "local_files_only" not in strings_in(model_folder)
    card = (model_folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: text-classification\n")
    told = ModelCard(card).data
    assert (told.tags, told.metrics, told.eval_results[0].metric_value) == (
        ["ds-distill"],
        ["accuracy"],
        summary["accuracy"],
    )
    monkeypatch.chdir(model_folder)
    assert pipeline("text-classification", ".")("of text " * 100, truncation=True)[0]["label"] in (
        "negative",
        "positive",
    )
    inputs = AutoTokenizer.from_pretrained(".")("a", "b")
    assert set(inputs) <= set(
        inspect.signature(AutoModelForSequenceClassification.from_pretrained(".").forward).parameters
    )


@pytest.mark.parametrize("make", [bert, roberta])
def test_the_bias_of_a_decoder_is_read_and_written_as_every_release_has_it(tmp_path, make):
    """The bias is one parameter with two names.

    For a RoBERTa, transformers 4.46 reads the decoder's, later releases the head's. The bias of an
    untied decoder is saved by 4 as the head's, and read by 5 as the decoder's.
    """
    for tied in (True, False):
        model = make(44).eval()
        model.config.tie_word_embeddings = tied
        model = randomised(type(model)(model.config))
        folder = tmp_path / f"{tied}"
        save_model_folder(model, wordpiece(), folder)
        decoder = get_family(model).decoder
        head = decoder.rpartition(".")[0]
        weights, bias = load_file(folder / "model.safetensors"), model.get_output_embeddings().bias
        assert torch.equal(weights[f"{decoder}.bias"], bias) and torch.equal(weights[f"{head}.bias"], bias)
        assert (model.get_parameter(f"{head}.bias") is bias) == tied, "the model itself is as before"
        del weights[f"{decoder}.bias"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        assert torch.equal(load_masked_lm(str(folder)).get_output_embeddings().bias, bias)
