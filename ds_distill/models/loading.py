"""Models from Hugging Face folders: their weights read, complete and finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from ds_distill.models.families import family_of_type
from ds_distill.models.folder import listed, open_model_folder, weight_files
from ds_distill.models.weight_names import renaming
from ds_distill.utils.errors import UserError


def load_model(
    auto: type, folder: Path, config: PretrainedConfig, given: str, *, hollow: bool = False, **how
) -> tuple[PreTrainedModel, list[str]]:
    """(the model of an opened folder, fp32 on the CPU, the weights that the folder lacks, sorted). auto: the AutoModel class of its head; hollow: names
    and shapes alone, on the device `meta`, for which only the headers of the files are read; how: more of from_pretrained's arguments.

    Words that training code has put before or into the names are left out (models.weight_names). Raises UserError, beginning with `given`, for a
    config that describes no model, or another than the weights are of, and for weights that cannot be read or are not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    files, empty = weight_files(folder, given), _empty_model(auto, folder, config, given)
    how |= {"device_map": "meta"} if hollow else {}
    try:
        names = []
        for file in files:
            with safe_open(file, "pt") as tensors:
                names += tensors.keys()
        mapping = renaming(names, empty, given)
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            key_mapping=mapping,
            **how,
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{given}: the weights cannot be read ({error}); copy or save the model again") from error
    if mismatched := sorted(str(entry[0]) for entry in info["mismatched_keys"]):
        raise UserError(
            f"{given}: config.json and weights differ in the shape of {listed(mismatched)}; restore the right config.json"
        )
    if info["missing_keys"] and not any(name not in info["missing_keys"] for name in empty.state_dict()):
        raise UserError(
            f"{given}: the names of its weights ({listed(sorted(names), 2)}) are none of a {type(model).__name__}'s; save the model itself "
            "with save_pretrained, not what it is a part of"
        )
    model._weight_conversions = None  # else save_pretrained would write the names of the file that was read
    if not hollow:
        check_finite(model.named_parameters(), given)
    missing = set(info["missing_keys"])
    _take_bias_from_head(model, missing)
    return model, sorted(missing)


def _take_bias_from_head(model: PreTrainedModel, missing: set[str]) -> None:
    """Give an untied decoder the bias that transformers 4 has saved under the head's name alone, and take it out of `missing`, names of weights."""
    import torch

    if type(model).__name__.endswith("ForMaskedLM"):
        decoder = family_of_type(model.config.model_type).decoder
        head = decoder.rpartition(".")[0]
        if f"{decoder}.bias" in missing and head and f"{head}.bias" not in missing:
            with torch.no_grad():
                model.get_parameter(f"{decoder}.bias").copy_(model.get_parameter(f"{head}.bias"))
            missing.remove(f"{decoder}.bias")


def check_finite(tensors: Iterable[tuple[str, Tensor]], given: str) -> None:
    """Raises UserError, beginning with `given`, for floating-point tensors with a NaN or an infinity in them, and names them."""
    bad = []
    for name, tensor in tensors:
        # the sum is not finite where an element is not; it takes no memory, as isfinite's answer would
        if (
            tensor.is_floating_point()
            and not math.isfinite(tensor.detach().float().sum())
            and not tensor.isfinite().all()
        ):
            bad.append(name)
    if bad:
        raise UserError(
            f"{given}: NaN or infinite values in the weights {listed(bad)}; the file is damaged, or the model's training diverged: give "
            "a checkpoint from before"
        )


def _empty_model(auto: type, folder: Path, config: PretrainedConfig, given: str) -> PreTrainedModel:
    """The model that config.json describes, without values. UserError where it cannot be built, or where the weights are far too small for it: it would
    be allocated all the same, and filled with noise."""
    import torch

    if not 1 <= config.num_hidden_layers <= 1000:
        raise UserError(f"{given}: {config.num_hidden_layers} layers in config.json; restore the right one")
    try:
        with torch.device("meta"):
            model = auto.from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, KeyError, AssertionError) as error:
        raise UserError(
            f"{given}: config.json describes no model ({' '.join(str(error).split())[:200]}); restore it"
        ) from error
    wanted = sum(parameter.numel() for parameter in model.parameters())
    there = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if wanted > 4 * there + 2**20:  # a byte a parameter is the least, and a trunk may lack its head
        raise UserError(
            f"{given}: config.json describes {wanted:,} parameters, the weights hold {there:,} bytes; restore the right one"
        )
    return model


def load_masked_lm(
    path: str, option: str = "teacher =", *, new_head: bool = False, dropout: float | None = None, hollow: bool = False
) -> PreTrainedModel:
    """A complete masked-LM model on the CPU, fp32, eval, sdpa attention, from a folder or the local Hugging Face cache.

    option: what errors begin with, before the path. new_head: give a checkpoint without a masked-LM head a random one (torch's generator).
    dropout: hidden and attention; the config's own if None. hollow: without values, as of models.folder.load_model.

    Safetensors only, no remote code, no network.  LayerNorm's legacy names `gamma` and `beta` are renamed by transformers.
    Raises UserError for a missing folder, a missing or unfit config, pickled weights, values that are not finite, and weights that the checkpoint
    lacks (transformers would fill them with noise: a headless teacher teaches noise).
    """
    folder, config = open_model_folder(path, option)
    given = f"{option} {path}"
    if dropout is not None:
        family_of_type(config.model_type).set_dropout(config, dropout)
    model, missing = load_model(AutoModelForMaskedLM, folder, config, given, hollow=hollow, attn_implementation="sdpa")
    prefix = model.base_model_prefix + "."
    head = [key for key in missing if not key.startswith(prefix)]
    trunk = sorted(set(missing) - set(head))
    if head and not new_head and not trunk:
        raise UserError(
            f"{given}: no masked-LM head, the checkpoint lacks {listed(head)}; give a ...ForMaskedLM checkpoint, or one "
            f"that `ds-distill pretrain --from {path}` has given a head"
        )
    if trunk:
        raise UserError(f"{given}: the checkpoint lacks {listed(trunk)}; give a complete checkpoint")
    return model.eval()
