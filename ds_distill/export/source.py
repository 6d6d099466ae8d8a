"""What is exported: a Hugging Face folder as the model, tokenizer and inputs that every format starts from."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.errors import UserError
from ds_distill.models.families import family_of_type

HEADS = {
    "masked-lm": ("ForMaskedLM", AutoModelForMaskedLM),
    "classification": ("ForSequenceClassification", AutoModelForSequenceClassification),
    "question-answering": ("ForQuestionAnswering", AutoModelForQuestionAnswering),
    "encoder": ("Model", AutoModel),
}  # the class's ending in config.json, and what loads it


@dataclass
class Source:
    """A folder, loaded. model: fp32, eval, on the CPU, with attention written out (exporters turn that into fewer nodes); head: a key of HEADS.
    tokenizer: None only for a model of random weights, whose speed is all that is asked for."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    head: str

    @cached_property
    def positions(self) -> int:
        """How many tokens a sequence may have."""
        return family_of_type(self.model.config.model_type).positions(self.model.config)

    @property
    def width(self) -> int:
        """The hidden size."""
        return family_of_type(self.model.config.model_type).measures(self.model.config)[2]

    @cached_property
    def inputs(self) -> list[str]:
        """Names of the inputs, each int64 [batch, sequence]: what the tokenizer gives and the model takes."""
        taken = inspect.signature(self.model.forward).parameters
        given = self.tokenizer.model_input_names if self.tokenizer else ("input_ids", "attention_mask")
        return [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in taken and name in given]

    def sample(self) -> dict[str, torch.Tensor]:
        """Inputs to trace with: two sequences, since a size of one would be taken for a constant."""
        ids = torch.arange(2 * min(16, self.positions)).remainder(self.model.config.vocab_size).view(2, -1)
        values = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        return {name: values[name] for name in self.inputs}


def load_source(path: str, head: str | None = None, *, for_speed: bool = False) -> Source:
    """The folder `path`, with the head that its config names, or with `head`.

    for_speed: a head that the weights lack gets random values, and there need be no tokenizer. Safetensors only, no remote code, no network.
    Raises UserError for a folder that holds no such model.
    """
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(f"--model {path}: no config.json there; give a Hugging Face folder, such as a run's export/")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"--model {path}: config.json cannot be used ({' '.join(str(error).split())[:200]})") from error
    family_of_type(config.model_type)  # a UserError where it is none of ours
    if not any(folder.glob("model*.safetensors")):
        raise UserError(f"--model {path}: no model.safetensors there; save the model with save_pretrained")
    kind = (config.architectures or [""])[0]
    head = head or next((name for name, (ending, _) in HEADS.items() if kind.endswith(ending)), None)
    if head is None:
        raise UserError(f"--model {path}: architectures = [{kind!r}] in config.json: exported are models with the heads {', '.join(HEADS)}")
    own = {"add_pooling_layer": False} if head == "encoder" and config.model_type != "distilbert" else {}
    model, info = HEADS[head][1].from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", use_safetensors=True, local_files_only=True, trust_remote_code=False,
        output_loading_info=True, **own,
    )  # fmt: skip
    if info["missing_keys"] and not for_speed:
        raise UserError(
            f"--model {path}: the weights lack {sorted(info['missing_keys'])[0]} and {len(info['missing_keys']) - 1} others of a {head} model"
        )
    tokenizer = None if for_speed and not (folder / "tokenizer_config.json").is_file() else load_tokenizer(folder)
    return Source(folder, model.eval(), tokenizer, head)


def copy_description(source: Source, output: Path) -> None:
    """Config and tokenizer into `output`, beside the files that need them, unless they are there."""
    if not (output / "config.json").is_file():
        config = json.loads((source.folder / "config.json").read_text())
        (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        source.tokenizer.save_pretrained(output)
