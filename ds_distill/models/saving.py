"""Writing a Hugging Face folder that works in other releases of transformers, under other users, in other programs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ds_distill.data.tokenizer import save_tokenizer
from ds_distill.models.families import INPUTS, get_family
from ds_distill.models.low_rank import multiplied_out
from ds_distill.models.tokenizer_fit import fit_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Servers look for these names in config.json. The values are DistilBERT's names.
COMMON_SIZES = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}


def save_model_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, offered: Iterable[str] = INPUTS
) -> None:
    """Write weights (safetensors), config.json and the tokenizer, which is fitted to the model in place, into `folder`.

    The folder then loads by its name alone, with the same answers in transformers 4.46 and later (a ModernBERT in 5,
    since earlier releases do not read which of its layers are global), and for every user that the umask allows to read
    it.

    Args:
        model: A model with any head, in fp32. From 16-bit weights transformers 5 would compute in
            16 bit, while 4 converts them to fp32 as it loads them.
        tokenizer: See `fit_tokenizer`.
        folder: Made where it is missing.
        offered: See `fit_tokenizer`.
    """
    with multiplied_out(model), _bias_under_both_names(model):
        model.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(
        json.dumps(portable_config(json.loads(file.read_text(encoding="utf-8"))), indent=2, sort_keys=True) + "\n",
        encoding="utf-8",
    )
    fit_tokenizer(tokenizer, model, offered)
    save_tokenizer(cast("PreTrainedTokenizerFast", tokenizer), folder)  # it takes no others
    follow_umask(folder)


@contextlib.contextmanager
def _bias_under_both_names(model: PreTrainedModel) -> Iterator[None]:
    """Have a masked-LM model save the bias of its decoder under the head's name and under the decoder's own.

    They are one parameter. Of a RoBERTa, however, transformers 4.46 reads only the decoder's name,
    and later releases only the head's. With an untied decoder they are one parameter in
    transformers 4 and two in 5, which does not use the head's.
    """
    head: Any
    head, name = (
        get_family(model).decoder_parent_and_name(model) if type(model).__name__.endswith("ForMaskedLM") else (None, "")
    )
    bias = getattr(head, "bias", None)
    if bias is None:
        yield
        return
    decoder = getattr(head, name)
    shared_bias = decoder.bias
    # separate memory, because tensors that share memory are saved once
    head.bias, decoder.bias = nn.Parameter(shared_bias.detach()), nn.Parameter(shared_bias.detach().clone())
    try:
        yield
    finally:
        head.bias, decoder.bias = bias, shared_bias


def portable_config(config: dict) -> dict:
    """Return a config.json's content in portable form.

    A DistilBERT's sizes are added under their common names. Keys that point at code or at another
    folder are removed.
    """
    kept = {key: value for key, value in config.items() if key not in ("auto_map", "_name_or_path")}
    return kept | {common: config[name] for common, name in COMMON_SIZES.items() if name in config}


def follow_umask(folder: Path) -> None:
    """Give all files in `folder` the mode of a new file there.

    safetensors writes weights that only their owner can read.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o777 != mode:
            with contextlib.suppress(OSError):  # a file system without modes
                file.chmod(mode)
