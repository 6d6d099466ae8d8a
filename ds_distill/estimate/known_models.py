"""Configs of well-known teachers, so that `estimate` needs neither a download nor a cache.

Each entry holds the keys of the model's config.json that decide its size. This module imports
neither torch nor transformers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_BERT_BASE: Final[dict[str, Any]] = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_LARGE: Final[dict[str, Any]] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
_ROBERTA_BASE: Final[dict[str, Any]] = _BERT_BASE | {
    "model_type": "roberta",
    "architectures": ["RobertaForMaskedLM"],
    "vocab_size": 50_265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
_CAMEMBERT_BASE: Final[dict[str, Any]] = _ROBERTA_BASE | {
    "model_type": "camembert",
    "architectures": ["CamembertForMaskedLM"],
    "vocab_size": 32_005,
}
_XLM_ROBERTA_BASE: Final[dict[str, Any]] = _ROBERTA_BASE | {
    "model_type": "xlm-roberta",
    "architectures": ["XLMRobertaForMaskedLM"],
    "vocab_size": 250_002,
}
# Their published files have no masked-LM head.
_DEBERTA_V3_BASE: Final[dict[str, Any]] = {
    "model_type": "deberta-v2",
    "architectures": ["DebertaV2Model"],
    "vocab_size": 128_100,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "position_biased_input": False,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
}
_DISTILBERT: Final[dict[str, Any]] = {
    "model_type": "distilbert",
    "architectures": ["DistilBertForMaskedLM"],
    "vocab_size": 30_522,
    "dim": 768,
    "n_layers": 6,
    "n_heads": 12,
    "hidden_dim": 3072,
    "max_position_embeddings": 512,
}
_MODERNBERT_BASE: Final[dict[str, Any]] = {
    "model_type": "modernbert",
    "architectures": ["ModernBertForMaskedLM"],
    "vocab_size": 50_368,
    "hidden_size": 768,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    "local_attention": 128,
}
# Sentence encoders have no masked-LM head.
_SENTENCE_BERT: Final[dict[str, Any]] = _BERT_BASE | {"architectures": ["BertModel"]}
_MINILM: Final[dict[str, Any]] = _SENTENCE_BERT | {"hidden_size": 384, "intermediate_size": 1536}
_MULTILINGUAL_MINILM: Final[dict[str, Any]] = _MINILM | {"vocab_size": 250_037}

# For each model (config, parameters with a masked-LM head and tied embeddings). The number guards
# against a mistyped key, which transformers would ignore.
KNOWN_MODELS: Final[dict[str, tuple[dict[str, Any], int]]] = {
    "google-bert/bert-base-uncased": (_BERT_BASE, 109_514_298),
    "google-bert/bert-base-cased": (_BERT_BASE | {"vocab_size": 28_996}, 108_340_804),
    "google-bert/bert-large-uncased": (_BERT_BASE | _LARGE, 335_174_458),
    "google-bert/bert-large-cased": (_BERT_BASE | _LARGE | {"vocab_size": 28_996}, 333_610_308),
    "google-bert/bert-base-multilingual-cased": (_BERT_BASE | {"vocab_size": 119_547}, 177_974_523),
    "google-bert/bert-base-multilingual-uncased": (_BERT_BASE | {"vocab_size": 105_879}, 167_463_831),
    "google-bert/bert-base-chinese": (_BERT_BASE | {"vocab_size": 21_128}, 102_290_312),
    "google-bert/bert-base-german-cased": (_BERT_BASE | {"vocab_size": 30_000}, 109_112_880),
    "distilbert/distilbert-base-uncased": (_DISTILBERT, 66_985_530),
    "distilbert/distilbert-base-cased": (_DISTILBERT | {"vocab_size": 28_996}, 65_812_036),
    "distilbert/distilbert-base-multilingual-cased": (_DISTILBERT | {"vocab_size": 119_547}, 135_445_755),
    "FacebookAI/roberta-base": (_ROBERTA_BASE, 124_697_433),
    "FacebookAI/roberta-large": (_ROBERTA_BASE | _LARGE, 355_412_057),
    "distilbert/distilroberta-base": (_ROBERTA_BASE | {"num_hidden_layers": 6}, 82_170_201),
    "FacebookAI/xlm-roberta-base": (_XLM_ROBERTA_BASE, 278_295_186),
    "FacebookAI/xlm-roberta-large": (_XLM_ROBERTA_BASE | _LARGE, 560_142_482),
    "almanach/camembert-base": (_CAMEMBERT_BASE, 110_655_493),
    "almanach/camembert-large": (_CAMEMBERT_BASE | _LARGE, 336_695_557),
    "microsoft/deberta-v3-xsmall": (
        _DEBERTA_V3_BASE | {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        70_958_820,
    ),
    "microsoft/deberta-v3-small": (_DEBERTA_V3_BASE | {"num_hidden_layers": 6}, 142_024_548),
    "microsoft/deberta-v3-base": (_DEBERTA_V3_BASE, 184_551_780),
    "microsoft/deberta-v3-large": (_DEBERTA_V3_BASE | _LARGE, 435_191_908),
    "microsoft/mdeberta-v3-base": (_DEBERTA_V3_BASE | {"vocab_size": 251_000}, 279_061_880),
    "answerdotai/ModernBERT-base": (_MODERNBERT_BASE, 149_655_232),
    "answerdotai/ModernBERT-large": (
        _MODERNBERT_BASE | _LARGE | {"num_hidden_layers": 28, "intermediate_size": 2624},
        395_881_664,
    ),
    "jhu-clsp/mmBERT-base": (_MODERNBERT_BASE | {"vocab_size": 256_000}, 307_786_240),
    "microsoft/MiniLM-L12-H384-uncased": (_MINILM, 33_391_290),
    "microsoft/Multilingual-MiniLM-L12-H384": (_MULTILINGUAL_MINILM, 117_904_565),
    "sentence-transformers/all-MiniLM-L6-v2": (_MINILM | {"num_hidden_layers": 6}, 22_744_506),
    "sentence-transformers/all-MiniLM-L12-v2": (_MINILM, 33_391_290),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": (_MULTILINGUAL_MINILM, 117_904_565),
    "BAAI/bge-small-en-v1.5": (_MINILM, 33_391_290),
    "BAAI/bge-base-en-v1.5": (_SENTENCE_BERT, 109_514_298),
    "BAAI/bge-large-en-v1.5": (_SENTENCE_BERT | _LARGE, 335_174_458),
    "intfloat/e5-base-v2": (_SENTENCE_BERT, 109_514_298),
    "intfloat/multilingual-e5-base": (_XLM_ROBERTA_BASE | {"architectures": ["XLMRobertaModel"]}, 278_295_186),
}


@dataclass(frozen=True)
class KnownModel:
    """A model of which only the config is known.

    Attributes:
        name: Its name on the Hub.
        role: The key or option that it was given to.
    """

    name: str
    role: str = "teacher"
    linear_rank: None = None  # as a folder's

    @property
    def title(self) -> str:
        """What sentences call the model."""
        return f"{self.role} {self.name}"

    @cached_property
    def config(self) -> PretrainedConfig:
        """Its config."""
        from transformers import AutoConfig

        keys = dict(KNOWN_MODELS[self.name][0])
        return AutoConfig.for_model(keys.pop("model_type"), **keys)


def find_known_model(name: str, role: str = "teacher") -> KnownModel | None:
    """Return the known model of this name, with or without its owner (bert-base-uncased), or None."""
    full = next((known for known in KNOWN_MODELS if name in (known, known.partition("/")[2])), None)
    return KnownModel(full, role) if full else None
