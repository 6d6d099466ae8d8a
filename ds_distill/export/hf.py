import filecmp
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from ds_distill.console import say
from ds_distill.data.tokenizer import save_tokenizer
from ds_distill.errors import UserError
from ds_distill.models.families import family_of
from ds_distill.report import MADE_WITH


def export(weights: dict[str, Tensor], like: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, card: str) -> Path:
    """Write `weights` (fp32, by state-dict name, tied ones once) as a folder that AutoModelForMaskedLM loads; returns `output`.

    like: a model of the same class and config. The folder is reloaded and its logits compared with the weights' own before a rename
    publishes it. Where the same model lies there already, the folder stays, with its card and what else was made of it; another model's goes, and what
    was made of that is named. Raises RuntimeError if the logits differ, and UserError for an `output` with anything but an earlier export of ours.
    """
    there = output / "README.md"
    if output.exists() and any(output.iterdir()) and not (there.is_file() and MADE_WITH in there.read_text(encoding="utf-8", errors="replace")):
        raise UserError(f"{output}: exists and is no export of ds-distill; choose another folder")
    model = type(like)(like.config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = set(model.all_tied_weights_keys) if hasattr(model, "all_tied_weights_keys") else set()
    if unexpected or set(missing) - tied:
        raise RuntimeError(f"export: unexpected weights {unexpected}, missing weights {sorted(set(missing) - tied)}")
    model.tie_weights()
    model.eval()
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    save_tokenizer(tokenizer, partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    reloaded = AutoModelForMaskedLM.from_pretrained(partial, use_safetensors=True).eval()
    length = min(32, family_of(model).positions(model.config))
    ids = torch.arange(2 * length).remainder(model.config.vocab_size).view(2, length)
    with torch.no_grad():
        difference = (reloaded(ids).logits - model(ids).logits).abs().max().item()
    if difference != 0.0:
        raise RuntimeError(f"export: the reloaded folder's logits differ by {difference}")
    if output.exists():
        if all(name == "README.md" or _same(partial / name, output / name) for name in os.listdir(partial)):
            shutil.rmtree(partial)
            return output
        if gone := sorted(set(os.listdir(output)) - set(os.listdir(partial))):
            say(f"{output}: another model than before; gone with that: {', '.join(gone)}")
    aside = output.with_name(f".{output.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    if output.exists():
        os.replace(output, aside)
    os.replace(partial, output)
    shutil.rmtree(aside, ignore_errors=True)
    return output


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
