"""Loading of models from Hugging Face folders, with a check that their weights are complete and finite."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from ds_distill.models.families import get_family_by_type
from ds_distill.models.folder import ModelFolder, find_model_folder, join_names, read_config, weight_files
from ds_distill.models.layer_shapes import is_pruned, reshape_layers, shaped_class
from ds_distill.models.leftovers import check_adapters, check_leftovers
from ds_distill.models.low_rank import put_factors
from ds_distill.models.weight_names import renaming
from ds_distill.utils.articles import with_article
from ds_distill.utils.errors import UserError


def load_model(
    auto: Any, folder: ModelFolder, config: PretrainedConfig | None = None, *, hollow: bool = False, **kwargs: Any
) -> tuple[PreTrainedModel, list[str]]:
    """Load the model of a folder, in fp32 on the CPU.

    Words that training code has put before or into the weights' names are left out
    (models.weight_names).

    Args:
        auto: The AutoModel class of the model's head.
        folder: The folder.
        config: A config to use instead of the folder's own.
        hollow: Load names and shapes alone, on the device `meta`. Only the headers of the files are
            read.
        **kwargs: Further arguments of from_pretrained.

    Returns:
        (the model, the sorted names of the weights that the folder lacks).

    Raises:
        UserError: The config describes no model, or another model than the one that the weights
            belong to, such as one of fewer layers, or the weights cannot be read or are not finite.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    given, config = folder.given, config or folder.config
    files, empty = weight_files(folder.path, given), _empty_model(auto, folder.path, config, given)
    kwargs |= {"device_map": "meta"} if hollow else {}
    try:
        names = []
        for file in files:
            with safe_open(file, "pt") as tensors:
                names += tensors.keys()
        check_adapters(names, given)
        family = get_family_by_type(config.model_type)
        renames = family.head_renames(read_config(folder.path, given), names)
        mapping = (renaming(names, empty, given) or {}) | renames
        model, info = pretrained_class(auto, config).from_pretrained(
            folder.path,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            key_mapping=mapping or None,
            **kwargs,
        )
    except (OSError, SafetensorError) as error:
        raise UserError(f"{given}: the weights cannot be read ({error}); copy or save the model again") from error
    if mismatched := sorted(str(entry[0]) for entry in info["mismatched_keys"]):
        raise UserError(
            f"{given}: config.json and the weights disagree on the shape of {join_names(mismatched)}; "
            "restore the right config.json"
        )
    if info["missing_keys"] and not any(name not in info["missing_keys"] for name in empty.state_dict()):
        raise UserError(
            f"{given}: the names of its weights ({join_names(sorted(names), 2)}) are not those of "
            f"{with_article(type(model).__name__)}; save the model itself with save_pretrained, not a module that "
            "contains it"
        )
    missing = set(info["missing_keys"])
    if not any(name.startswith(family.prefix(model)) and ".pooler." not in f".{name}" for name in missing):
        check_leftovers(info["unexpected_keys"], names, model, given)  # else callers name what is missing
    # without this, save_pretrained would write the names that stood in the file
    model._weight_conversions = None
    if not hollow:
        check_finite(model.named_parameters(), given)
    _take_bias_from_head(model, missing)
    return model, sorted(missing)


def _take_bias_from_head(model: PreTrainedModel, missing: set[str]) -> None:
    """Give an untied decoder the bias that transformers 4 saved under the head's name alone; drop it from `missing`."""
    import torch

    if type(model).__name__.endswith("ForMaskedLM"):
        decoder = get_family_by_type(model.config.model_type).decoder
        head = decoder.rpartition(".")[0]
        if f"{decoder}.bias" in missing and head and f"{head}.bias" not in missing:
            with torch.no_grad():
                model.get_parameter(f"{decoder}.bias").copy_(model.get_parameter(f"{head}.bias"))
            missing.remove(f"{decoder}.bias")


def check_finite(tensors: Iterable[tuple[str, Tensor]], given: str) -> None:
    """Raise UserError, beginning with `given`, that names the floating-point tensors with a NaN or an infinity."""
    bad = []
    for name, tensor in tensors:
        # The sum is not finite where an element is not. Unlike isfinite's result, it takes no
        # memory.
        if (
            tensor.is_floating_point()
            and not math.isfinite(tensor.detach().float().sum())
            and not tensor.isfinite().all()
        ):
            bad.append(name)
    if bad:
        raise UserError(
            f"{given}: NaN or infinite values in the weights {join_names(bad)}; the file is damaged, or the model's "
            "training diverged; give an earlier checkpoint"
        )


def _empty_model(auto: Any, folder: Path, config: PretrainedConfig, given: str) -> PreTrainedModel:
    """Return the model that config.json describes, without values.

    Raises:
        UserError: The model cannot be built, or the weights are far too small for it. Such a model
            would be allocated all the same, and filled with noise.
    """
    import torch

    if not 1 <= config.num_hidden_layers <= 1000:
        raise UserError(f"{given}: config.json says {config.num_hidden_layers} layers; restore the right config.json")
    try:
        with torch.device("meta"):
            model = make_model(auto, config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, KeyError, AssertionError) as error:
        raise UserError(
            f"{given}: config.json does not describe a model that can be built "
            f"({' '.join(str(error).split())[:200]}); restore it"
        ) from error
    wanted = sum(parameter.numel() for parameter in model.parameters())
    there = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if wanted > 4 * there + 2**20:  # a parameter takes at least one byte, and an encoder may lack its head
        raise UserError(
            f"{given}: config.json describes {wanted:,} parameters, but the weights are only {there:,} bytes; "
            "restore the right config.json"
        )
    return model


def no_pooler(model_type: str) -> dict[str, bool]:
    """Return the options with which transformers makes a bare encoder without a pooler.

    Masked-LM models lack a pooler's weights, and some families never have one.
    """
    return {"add_pooling_layer": False} if get_family_by_type(model_type).has_pooler else {}


def new_model(config: PretrainedConfig, *, head: bool) -> PreTrainedModel:
    """Return a model with random weights: a masked-LM model, or without a head the bare encoder, without a pooler.

    Args:
        config: The model's config.
        head: Whether it has a masked-LM head.

    Raises:
        UserError: The rank that the config states makes no linear layer smaller.
    """
    attention = get_family_by_type(config.model_type).attention
    if head:
        model = make_model(AutoModelForMaskedLM, config, attn_implementation=attention)
    else:
        model = make_model(AutoModel, config, attn_implementation=attention, **no_pooler(config.model_type))
    put_factors(model)
    return model


def pretrained_class(auto: Any, config: PretrainedConfig) -> Any:
    """Return what loads a folder of this config with from_pretrained: `auto`, or a class for pruned layers."""
    import torch

    if not is_pruned(config):
        return auto
    with torch.device("meta"):
        return shaped_class(type(auto.from_config(config, trust_remote_code=False)))


def make_model(auto: Any, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """Return a model with random weights, whose layers have the shapes that the config states.

    Args:
        auto: The AutoModel class of the model's head.
        config: The model's config.
        **options: Further arguments of from_config.
    """
    model = auto.from_config(config, trust_remote_code=False, **options)
    reshape_layers(model)
    return model


def load_masked_lm(
    folder: ModelFolder | str,
    *,
    new_head: bool = False,
    dropout: float | None = None,
    hollow: bool = False,
    remedy: str = "",
) -> PreTrainedModel:
    """Load a complete masked-LM model from a folder or from the local Hugging Face cache.

    The model is in fp32, on the CPU, in eval mode, and uses its family's attention. Only safetensors are
    read, no remote code is run, and the network is not used. transformers renames LayerNorm's
    legacy names `gamma` and `beta`.

    Args:
        folder: The folder; or the name of a teacher, to be found first.
        new_head: Give a checkpoint without a masked-LM head a random one, drawn from torch's
            generator.
        dropout: The hidden and the attention dropout, or None for the config's own.
        hollow: Load no values, as in `load_model`.
        remedy: What else may be done about a head that is not there, for the error.

    Raises:
        UserError: The folder is missing, the config is missing or unfit, the weights are pickled,
            values are not finite, or the checkpoint lacks weights. transformers would fill missing
            weights with noise, and a teacher without its head teaches noise.
    """
    folder = find_model_folder(folder) if isinstance(folder, str) else folder
    model, head, encoder = _load_with_head(folder, dropout, hollow)
    if head and not new_head and not encoder:
        note = get_family_by_type(folder.config.model_type).head_note
        raise UserError(
            f"{folder.given}: no masked-LM head: the checkpoint lacks {join_names(head)}"
            f"{f' ({note})' if note else ''}; give a ...ForMaskedLM "
            f"checkpoint, or add a head with `ds-distill pretrain --from {folder.name}`{remedy}"
        )
    _check_encoder(folder, encoder)
    return model.eval()


def load_encoder(
    folder: ModelFolder | str, *, dropout: float | None = None, hollow: bool = False, bare: bool = False
) -> PreTrainedModel:
    """Load the masked-LM model of a folder, or where it has no such head, its bare encoder, without a pooler.

    A folder without the head is one of an encoder alone, such as a sentence embedder's, or of a model with another
    head, such as a fine-tuned classifier, whose head is not read.

    Args:
        folder: As in `load_masked_lm`.
        dropout: As in `load_masked_lm`.
        hollow: As in `load_masked_lm`.
        bare: Load the bare encoder in any case.

    Raises:
        UserError: As in `load_masked_lm`, but for a missing head.
    """
    folder = find_model_folder(folder) if isinstance(folder, str) else folder
    if not bare:
        _, head, encoder = _load_with_head(folder, None, True)
        _check_encoder(folder, encoder)
        if not head:
            return load_masked_lm(folder, dropout=dropout, hollow=hollow)
    config, options = _config(folder, dropout), dict[str, Any](no_pooler(folder.config.model_type))
    options["attn_implementation"] = get_family_by_type(config.model_type).attention
    model, missing = load_model(AutoModel, folder, config, hollow=hollow, **options)
    _check_encoder(folder, missing)
    return model.eval()


def load_teacher(folder: ModelFolder, *, logits: bool, hollow: bool = False) -> PreTrainedModel:
    """Load a teacher: a masked-LM model where it teaches by its logits, and else what `load_encoder` returns.

    Args:
        folder: The teacher's folder.
        logits: Whether a term compares the student's logits with its logits.
        hollow: As in `load_masked_lm`.

    Raises:
        UserError: As in `load_masked_lm`.
    """
    if logits:
        remedy = ", or set losses.kl = 0 and losses.mlm = 0 to distill its encoder alone"
        return load_masked_lm(folder, hollow=hollow, remedy=remedy)
    return load_encoder(folder, hollow=hollow)


def _config(folder: ModelFolder, dropout: float | None) -> PretrainedConfig:
    """Return a copy of a folder's config, with this dropout unless it is None."""
    config = copy.deepcopy(folder.config)
    if dropout is not None:
        get_family_by_type(config.model_type).set_dropout(config, dropout)
    return config


def _load_with_head(
    folder: ModelFolder, dropout: float | None, hollow: bool
) -> tuple[PreTrainedModel, list[str], list[str]]:
    """Return (a masked-LM model, the weights that the folder lacks of its head, those that it lacks of its encoder)."""
    config = _config(folder, dropout)
    attention = get_family_by_type(config.model_type).attention
    model, missing = load_model(AutoModelForMaskedLM, folder, config, hollow=hollow, attn_implementation=attention)
    prefix = model.base_model_prefix + "."
    head = [key for key in missing if not key.startswith(prefix)]
    return model, head, sorted(set(missing) - set(head))


def _check_encoder(folder: ModelFolder, missing: list[str]) -> None:
    """Raise UserError where a folder lacks weights of its encoder."""
    if missing:
        raise UserError(f"{folder.given}: the checkpoint lacks {join_names(missing)}; give a complete checkpoint")
