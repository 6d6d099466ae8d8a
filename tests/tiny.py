"""Tiny encoders of every family, each with its family's usual kind of tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CamembertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaForMaskedLM,
    RobertaTokenizerFast,
    XLMRobertaForMaskedLM,
)

from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.exporters.parity import SAMPLE

FAMILIES = ("bert", "camembert", "distilbert", "modernbert", "roberta", "xlm-roberta")
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


def sentencepiece_tokenizer(folder: Path) -> None:
    """Train XLM-R's kind: Unigram over text in which spaces are characters."""
    marks = ["<s>", "<pad>", "</s>", "<unk>"]
    trained = Tokenizer(models.Unigram())
    trained.normalizer = normalizers.NFKC()
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=[*marks, "<mask>"], unk_token="<unk>", show_progress=False
    )
    trained.train_from_iterator(SAMPLE.read_text().splitlines(), trainer)
    trained.decoder = decoders.Metaspace()
    trained.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=512, **MARKS).save_pretrained(folder)


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
