"""Export of trained weights as a Hugging Face folder."""

import filecmp
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from ds_distill.exporters.sentence_embedding import copy_sentence_transformers_files
from ds_distill.models.families import get_family
from ds_distill.models.loading import new_model, no_pooler, pretrained_class
from ds_distill.models.low_rank import multiplied_out
from ds_distill.models.saving import save_model_folder
from ds_distill.reporting.card_sections import MADE_WITH
from ds_distill.utils.console import log
from ds_distill.utils.errors import UserError


def export(
    weights: dict[str, Tensor],
    like: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output: Path,
    card: str,
    kept: Path | None = None,
) -> Path:
    """Write `weights` as a folder that AutoModelForMaskedLM loads, or AutoModel for a bare encoder; return `output`.

    The folder is reloaded, and its outputs are compared with the weights' own before a rename
    publishes it. Where the same model lies there already, the folder stays, with its card and the
    formats made of it. The folder of another model is replaced, and a line names what had been made
    of that model.

    Args:
        weights: fp32, by state-dict name, tied ones once.
        like: A model of the same class and config.
        tokenizer: The tokenizer to save with the model.
        output: The folder to write.
        card: The text of the model card.
        kept: A folder whose files of sentence-transformers are added, where it has them.

    Raises:
        RuntimeError: The outputs differ.
        UserError: `output` holds anything but an earlier export by ds-distill.
    """
    output = Path(os.path.abspath(output))  # the folders beside it are named after it, and "." has no name
    old_card = output / "README.md"
    if (
        output.exists()
        and any(output.iterdir())
        and not (old_card.is_file() and MADE_WITH in old_card.read_text(encoding="utf-8", errors="replace"))
    ):
        raise UserError(f"{output}: already exists and is not an export of ds-distill; choose another folder")
    head = get_family(like).has_head(like)
    model = new_model(like.config, head=head).float().eval()  # the config may name 16 bit
    _load_weights(model, weights)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save_model_folder(model, tokenizer, partial)
    if kept:
        copy_sentence_transformers_files(kept, partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    auto, options = (AutoModelForMaskedLM, {}) if head else (AutoModel, no_pooler(like.config.model_type))
    reloaded = pretrained_class(auto, like.config).from_pretrained(partial, use_safetensors=True, **options).eval()
    length = min(32, get_family(model).positions(model.config))
    ids = torch.arange(2 * length).remainder(model.config.vocab_size).view(2, length)
    with torch.no_grad(), multiplied_out(model):
        difference = (reloaded(ids)[0] - model(ids)[0]).abs().max().item()  # logits, or the last hidden states
    if difference != 0.0:
        raise RuntimeError(f"export: the reloaded folder's outputs differ by {difference}")
    _publish(partial, output)
    return output


def copy_export(source: Path, output: Path) -> None:
    """Copy a folder that `export` has written, with what was made of its model; `output` is replaced as by `export`.

    Raises:
        UserError: The disk is full.
    """
    output = Path(os.path.abspath(output))
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, copy_function=shutil.copyfile)
    except shutil.Error as error:  # a list of (from, to, why) of all files that could not be copied
        _, file, why = error.args[0][0]
        raise UserError(f"{file}: cannot be written ({why}); free some space, and repeat the command") from error
    _publish(partial, output)


def _publish(partial: Path, output: Path) -> None:
    """Put a complete folder in the place of `output`, which stays, with all that was made of it, if it is the same."""
    if output.exists():
        files = [file for file in partial.rglob("*") if file.is_file() and file != partial / "README.md"]
        if all(_is_same_file(file, output / file.relative_to(partial)) for file in files):
            shutil.rmtree(partial)
            return
        if removed := sorted(set(os.listdir(output)) - set(os.listdir(partial))):
            log(f"{output}: replaced an earlier model; removed with it: {', '.join(removed)}")
    previous = output.with_name(f".{output.name}.before")
    shutil.rmtree(previous, ignore_errors=True)
    if output.exists():
        os.replace(output, previous)
    os.replace(partial, output)
    shutil.rmtree(previous, ignore_errors=True)


def _load_weights(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Load `weights` into `model`, a tied weight under any of its names.

    Which name comes first, and so stands for both, differs among the families.

    Raises:
        RuntimeError: A weight is missing under all of its names, or the model does not have a
            weight.
    """
    missing, unexpected = model.load_state_dict(weights, strict=False)
    names_by_parameter: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_by_parameter.setdefault(id(parameter), []).append(name)
    loaded = {other for names in names_by_parameter.values() if not weights.keys().isdisjoint(names) for other in names}
    if unexpected or set(missing) - loaded:
        raise RuntimeError(f"export: unexpected weights {unexpected}, missing weights {sorted(set(missing) - loaded)}")


def _is_same_file(first: Path, second: Path) -> bool:
    return second.is_file() and filecmp.cmp(first, second, shallow=False)
