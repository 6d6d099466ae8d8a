"""Small teachers of every family.

Each has a tokenizer of its family's own kind, trained on the package's sample text.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, ByteLevelBPETokenizer, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from tokenizers.trainers import UnigramTrainer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.exporters.parity import SAMPLE

POSITIONS = 48  # so few that even a short text is overlong
VOCABULARY = 600
SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 128}
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MASK = AddedToken("<mask>", lstrip=True, special=True)


def make_bert(folder: Path) -> None:
    """Write a BERT with a WordPiece tokenizer that promises 512 tokens, as bert-base-uncased's does."""
    size = len(train_wordpiece(SAMPLE.read_text(encoding="utf-8").splitlines(), VOCABULARY, folder))
    _save(BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=POSITIONS, **SIZES)), folder, seed=1)


def make_roberta(folder: Path) -> None:
    """Write a RoBERTa with byte-level BPE; its tokenizer promises no length at all."""
    trained = ByteLevelBPETokenizer()
    trained.train([str(SAMPLE)], VOCABULARY, special_tokens=[*SPECIAL, MASK], show_progress=False)
    folder.mkdir(parents=True)
    tokenizer = trained._tokenizer
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    _save_tokenizer(tokenizer, folder, "RobertaTokenizer")
    size = tokenizer.get_vocab_size()
    _save(RobertaForMaskedLM(RobertaConfig(vocab_size=size, **_roberta_sizes())), folder, seed=2)


def make_xlm_roberta(folder: Path) -> None:
    """Write an XLM-R with a Unigram tokenizer, which is SentencePiece's kind."""
    trainer = UnigramTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer = Tokenizer(Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.train([str(SAMPLE)], trainer)
    tokenizer.add_special_tokens([MASK])  # the last id, as in the released models
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(parents=True)
    _save_tokenizer(tokenizer, folder, "XLMRobertaTokenizer", model_max_length=512)
    size = tokenizer.get_vocab_size()
    _save(XLMRobertaForMaskedLM(XLMRobertaConfig(vocab_size=size, **_roberta_sizes())), folder, seed=3)


TEACHERS = {"bert": make_bert, "roberta": make_roberta, "xlm-roberta": make_xlm_roberta}


def _roberta_sizes() -> dict:
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    return SIZES | ids | {"max_position_embeddings": POSITIONS + 2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


def _save_tokenizer(tokenizer: Tokenizer, folder: Path, kind: str, **settings) -> None:
    """Write tokenizer.json and the tokenizer_config.json that the family's models on the hub have."""
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
    }
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token=MASK, **names, **settings)
    fast.save_pretrained(str(folder))
    file = folder / "tokenizer_config.json"
    file.write_text(
        file.read_text(encoding="utf-8")
        .replace('"TokenizersBackend"', f'"{kind}"')
        .replace('"PreTrainedTokenizerFast"', f'"{kind}"')
    )


def _save(model: PreTrainedModel, folder: Path, seed: int) -> None:
    """Give the model weights large enough that its outputs differ clearly from text to text, and write it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(noise + 1 if "norm" in name.lower() and name.endswith("weight") else noise)
    model.save_pretrained(folder)
