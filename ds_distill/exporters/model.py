"""The source of an export: a Hugging Face folder as the model, tokenizer and inputs that every format starts from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ds_distill.models.families import get_family_by_type, get_input_names
from ds_distill.models.folder import find_model_folder, join_names
from ds_distill.models.layer_shapes import layer_shapes
from ds_distill.models.loading import load_model, no_pooler
from ds_distill.models.low_rank import restore_factors
from ds_distill.models.tokenizer_fit import check_vocabulary
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError

# the class's ending in config.json, and the class that loads it
HEADS = {
    "masked-lm": ("ForMaskedLM", AutoModelForMaskedLM),
    "classification": ("ForSequenceClassification", AutoModelForSequenceClassification),
    "token-classification": ("ForTokenClassification", AutoModelForTokenClassification),
    "question-answering": ("ForQuestionAnswering", AutoModelForQuestionAnswering),
    "encoder": ("Model", AutoModel),
}


@dataclass
class ExportModel:
    """A loaded folder.

    Attributes:
        folder: The folder.
        model: fp32, eval, on the CPU, with attention written out, which exporters turn into fewer
            nodes.
        tokenizer: None only for a model of which only the speed is measured.
        head: A key of HEADS.
        whole: Whether all weights were in the folder.
        linear_rank: The rank that the folder states, see models.low_rank.
    """

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast | None
    head: str
    whole: bool = True
    linear_rank: int | None = None

    @cached_property
    def traced(self) -> PreTrainedModel:
        """The model that files are made of: with factors, where the folder holds the products of those."""
        return restore_factors(self.model, self.linear_rank)

    @property
    def reader(self) -> PreTrainedTokenizerFast:
        """The tokenizer of a model that reads text."""
        assert self.tokenizer is not None
        return self.tokenizer

    @cached_property
    def positions(self) -> int:
        """The number of tokens that a sequence may have."""
        return get_family_by_type(self.model.config.model_type).positions(self.model.config)

    @property
    def widths(self) -> tuple[int, ...]:
        """The hidden size, then what else products read: widths of heads, feed-forwards, embeddings and factors."""
        family, config = get_family_by_type(self.model.config.model_type), self.model.config
        dims = family.dims(config)
        head = dims.width // dims.heads
        inner = (size for shape in layer_shapes(config) for size in (head * shape.heads, shape.feed_forward))
        others = (*inner, family.embedding_width(config), self.linear_rank)
        return dims.width, *dict.fromkeys(size for size in others if size)

    @cached_property
    def inputs(self) -> list[str]:
        """The names of the inputs, each int64 [batch, sequence].

        They are those that the tokenizer returns and the model takes, and in any case a mask, for
        batches.
        """
        return get_input_names(
            self.model, {"input_ids", "attention_mask", *(self.tokenizer.model_input_names if self.tokenizer else ())}
        )

    def sample(self) -> dict[str, torch.Tensor]:
        """Return inputs to trace with: two sequences, since an axis of size one would be taken for a constant."""
        ids = torch.arange(2 * min(16, self.positions)).remainder(self.model.config.vocab_size).view(2, -1)
        values = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return {name: values[name] for name in self.inputs}


def load_source(path: str, head: str | None = None, *, option: str = "--model", for_speed: bool = False) -> ExportModel:
    """Load the folder `path`.

    Only safetensors are read, no remote code is run and the network is not used.

    Args:
        path: The folder or the name of a model.
        head: A key of HEADS, or None for the head that the config names.
        option: What errors begin with, before the path.
        for_speed: Give a head that the weights lack random values, and need no tokenizer.

    Raises:
        UserError: The folder holds no such model.
    """
    folder = find_model_folder(path, option).check_files()
    config = folder.config
    kind = (config.architectures or [""])[0]
    head = head or next((name for name, (ending, _) in HEADS.items() if kind.endswith(ending)), None)
    if head is None:
        raise UserError(
            f"{folder.given}: architectures = [{kind!r}] in config.json: not a head that can be exported; give a model "
            f"with one of the heads {', '.join(HEADS)}"
        )
    options: dict[str, Any] = {"attn_implementation": "eager"} | without_pooler(head, config.model_type)
    model, missing = load_model(HEADS[head][1], folder, **options)
    if missing and not for_speed:
        raise UserError(
            f"{folder.given}: the weights lack {join_names(missing)} of {with_article(head)} model; give a complete "
            "checkpoint"
        )
    tokenizer = None if for_speed and not folder.has_tokenizer else folder.tokenizer
    if tokenizer:
        check_vocabulary(tokenizer, config, folder.given)
    return ExportModel(folder.path, model.eval(), tokenizer, head, not missing, folder.linear_rank)


def without_pooler(head: str, model_type: str) -> dict[str, bool]:
    """Return the options with which from_pretrained makes a model of this head; an encoder has no pooler."""
    return no_pooler(model_type) if head == "encoder" else {}


def read_json(file: Path) -> object:
    """Return the contents of a JSON file in an output folder; raise UserError where it is damaged."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: damaged ({error}); remove it, or choose another --output") from None
