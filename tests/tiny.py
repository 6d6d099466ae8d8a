"""Tiny encoders of every family, each with its family's usual kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    CamembertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
    XLMRobertaForMaskedLM,
)

from ds_distill.data.tokenizer import SPECIAL_TOKENS, train_wordpiece
from ds_distill.exporters.parity import SAMPLE

FAMILIES = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "roberta",
    "xlm-roberta",
)
ROBERTA_LIKE = {
    "camembert": CamembertForMaskedLM,
    "roberta": RobertaForMaskedLM,
    "xlm-roberta": XLMRobertaForMaskedLM,
}
POSITIONS = 64
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MARKS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


def byte_level_tokenizer(folder: Path) -> None:
    """Train RoBERTa's kind: byte-level BPE, in which a character beyond ASCII is several tokens."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(SAMPLE.read_text().splitlines(), trainer)
    trained.decoder = decoders.ByteLevel()
    trained.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    folder.mkdir(parents=True, exist_ok=True)
    trained.save(str(folder / "tokenizer.json"))
    RobertaTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), model_max_length=512).save_pretrained(folder)


def bert_like_byte_level_tokenizer(folder: Path) -> None:
    """Train ModernBERT's kind: byte-level BPE with BERT's special tokens."""
    marks = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", AddedToken("[MASK]", lstrip=True)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.NFC()
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=marks,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trained.train_from_iterator(SAMPLE.read_text().splitlines(), trainer)
    trained.decoder = decoders.ByteLevel()
    trained.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = dict(zip(("unk_token", "cls_token", "sep_token", "pad_token", "mask_token"), marks, strict=True))
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=trained, model_max_length=8192, model_input_names=inputs, **names
    ).save_pretrained(folder)


def train_unigram(marks: list[str], unknown: str) -> Tokenizer:
    """Train a Unigram over text in which spaces are characters; the marks have the first ids."""
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=marks, unk_token=unknown, show_progress=False)
    trained.train_from_iterator(SAMPLE.read_text().splitlines(), trainer)
    return trained


def deberta_tokenizer(folder: Path) -> None:
    """Train DeBERTa's kind: a Unigram with marks of its own, whose mask comes after all pieces."""
    trained = train_unigram(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], "[UNK]")
    pieces = [(piece, score) for piece, score in json.loads(trained.to_str())["model"]["vocab"]]
    DebertaV2Tokenizer(vocab=pieces, model_max_length=512).save_pretrained(folder)


def sentencepiece_tokenizer(folder: Path) -> None:
    """Train XLM-R's kind: a Unigram with RoBERTa's marks."""
    trained = train_unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<unk>")
    trained.decoder = decoders.Metaspace()
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=512, **MARKS).save_pretrained(folder)


def mpnet_tokenizer(folder: Path) -> None:
    """Train MPNet's kind: BERT's WordPiece with most of RoBERTa's special tokens and its padding id."""
    pieces = train_wordpiece(SAMPLE.read_text().splitlines(), 300, folder).get_vocab()
    (folder / "vocab.txt").unlink()
    words = sorted(pieces.keys() - set(SPECIAL_TOKENS), key=pieces.__getitem__)
    vocabulary = ["<s>", "<pad>", "</s>", "[UNK]", *words, "<mask>"]
    MPNetTokenizer(
        vocab={token: number for number, token in enumerate(vocabulary)}, model_max_length=512
    ).save_pretrained(folder)


def make_embedder(folder: Path, width: int = 32) -> Path:
    """Make a folder with a tiny model one of sentence-transformers, which normalizes the output at [CLS]."""
    kinds = ("Transformer", "Pooling", "Normalize")
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir()
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "q: "}}))
    return folder


def read_embedder(folder: Path) -> tuple[list[str], dict]:
    """Return the kinds of a sentence-transformers folder's modules, and what its pooling states."""
    modules = json.loads((folder / "modules.json").read_text())
    assert all((folder / module["path"]).is_dir() for module in modules)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    return [module["type"].rpartition(".")[2] for module in modules], pooling


def save_encoder(family: str, folder: Path) -> Path:
    """Write a masked-LM model of `family` and its tokenizer to `folder`.

    Its weights are large, so that outputs differ from text to text.
    """
    torch.manual_seed(0)
    if family in ("bert", "distilbert"):
        size = len(train_wordpiece(SAMPLE.read_text().splitlines(), 300, folder))
        bert, smaller = (
            BertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **SIZES),
            {"dim": 32, "hidden_dim": 64, "n_heads": 2, "n_layers": 2},
        )
        model = (
            BertForMaskedLM(bert)
            if family == "bert"
            else DistilBertForMaskedLM(DistilBertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **smaller))
        )
    elif family == "deberta-v2":
        deberta_tokenizer(folder)
        model = DebertaV2ForMaskedLM(
            DebertaV2Config(
                vocab_size=1 + max(PreTrainedTokenizerFast.from_pretrained(folder).get_vocab().values()),
                max_position_embeddings=POSITIONS,
                position_biased_input=False,
                relative_attention=True,
                position_buckets=16,
                norm_rel_ebd="layer_norm",
                share_att_key=True,
                pos_att_type=["p2c", "c2p"],
                **SIZES,
            )
        )
    elif family in ("albert", "electra"):  # with the tokenizer of a BERT, whose student either may be
        size = len(train_wordpiece(SAMPLE.read_text().splitlines(), 300, folder))
        config = {"vocab_size": size, "embedding_size": 16, "max_position_embeddings": POSITIONS, **SIZES}
        ids = {"bos_token_id": None, "eos_token_id": None}
        model = (
            ElectraForMaskedLM(ElectraConfig(**config))
            if family == "electra"
            else AlbertForMaskedLM(AlbertConfig(**config, **ids))
        )
    elif family == "mpnet":
        mpnet_tokenizer(folder)
        size = len(PreTrainedTokenizerFast.from_pretrained(folder))
        model = MPNetForMaskedLM(MPNetConfig(vocab_size=size, max_position_embeddings=POSITIONS + 2, **SIZES))
    elif family == "modernbert":
        bert_like_byte_level_tokenizer(folder)
        size = 1 + max(PreTrainedTokenizerFast.from_pretrained(folder).get_vocab().values())
        # long texts are longer than the window, and what exports are traced with is shorter
        config = {"vocab_size": size, "max_position_embeddings": POSITIONS, "local_attention": 40, **SIZES}
        ids = {"cls_token_id": 1, "bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 3}
        model = ModernBertForMaskedLM(ModernBertConfig(**config, **ids))
    else:
        (byte_level_tokenizer if family == "roberta" else sentencepiece_tokenizer)(folder)
        size = 1 + max(PreTrainedTokenizerFast.from_pretrained(folder).get_vocab().values())
        config = {
            "vocab_size": size,
            "max_position_embeddings": POSITIONS + 2,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            "type_vocab_size": 1,
            **SIZES,
        }
        model = ROBERTA_LIKE[family](ROBERTA_LIKE[family].config_class(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
