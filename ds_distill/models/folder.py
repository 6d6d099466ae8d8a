"""A Hugging Face folder, looked over before anything of it is loaded: what from_pretrained would answer with a puzzle is one sentence here."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ds_distill.errors import UserError, at_home
from ds_distill.models.families import FAMILIES, family_of_type
from ds_distill.run_folder import find_model


def resolve_model_folder(path: str, option: str = "teacher =") -> Path:
    """The folder of a checkpoint: `path` itself, the model in it where it is the --output of a command that made one, or the local Hugging Face
    cache's copy of the hub model of that name.

    option: what errors begin with, before the path. Never touches the network: hundreds of ranks must not each download.
    Raises UserError where neither exists.
    """
    folder = at_home(path)
    if folder.is_dir():
        return find_model(folder)
    if folder.exists():
        raise UserError(f"{option} {path}: a file; give the folder that holds config.json and model.safetensors")
    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        raise UserError(
            f"{option} {path}: no such folder, and no model of that name in the Hugging Face cache; "
            f"correct the path, or fetch a hub model once with `hf download {path}`"
        ) from None


def open_model_folder(path: str, option: str = "teacher =") -> tuple[Path, PretrainedConfig]:
    """(folder, config) of an encoder of a known family with safetensors in it.

    No remote code, no network. Raises UserError, beginning with `option` and the path, for a missing folder, a missing or unfit config, a model
    that is no bidirectional encoder with absolute positions, pickled or absent weights, and an index that names files outside of the folder.
    """
    folder, given = resolve_model_folder(path, option), f"{option} {path}"
    config = config_of(folder, given)
    for index in folder.glob("*.safetensors.index.json"):
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{given}: {index.name} cannot be read ({error}); save the model again") from None
        if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise UserError(f"{given}: {index.name} names {strange[0]!r}, outside of the folder; save the model again")
    if not any(folder.glob("model*.safetensors")):
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {', '.join(pickled)}, and pickled weights are not loaded" if pickled else "no weights"
        raise UserError(f"{given}: {found}; save the model with save_pretrained, which writes model.safetensors")
    return folder, config


def config_of(folder: Path, given: str) -> PretrainedConfig:
    """The config of an encoder of a known family. Raises UserError, beginning with `given`, where there is none, or an unfit one."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{given}: no config.json in the folder; give a folder written by save_pretrained, such as a run's export/")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{given}: config.json is not a JSON object ({error}); save the model again") from None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{given}: model_type is {model_type!r}; supported: {', '.join(FAMILIES)}")
    if config.get("quantization_config") is not None:
        raise UserError(f"{given}: quantised weights (quantization_config in config.json); give the model in fp32 or 16 bit")
    if config.get("is_decoder"):
        raise UserError(f"{given}: is_decoder is true, a causal model; give a bidirectional encoder")
    # transformers 5 dropped relative positions and would load such a checkpoint as if they were absolute
    if config.get("position_embedding_type", "absolute") != "absolute":
        kind = config["position_embedding_type"]
        raise UserError(f"{given}: position_embedding_type is {kind!r}; give a model with absolute positions")
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family = family_of_type(model_type)
        if not all(isinstance(number, int) for number in (family.positions(found), *family.measures(found)[:4])):
            raise ValueError("its sizes are no whole numbers")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"{given}: config.json cannot be used ({' '.join(str(error).split())[:200]}); restore it") from error
    found._attn_implementation = None  # it may name a kernel on the hub, which is code
    found.return_dict = True
    return found


def load_model(auto: type, folder: Path, config: PretrainedConfig, given: str, **how) -> tuple[PreTrainedModel, list[str]]:
    """(the model of an opened folder, fp32 on the CPU, the weights that the folder lacks, sorted). auto: the AutoModel class of its head; how: more of
    from_pretrained's arguments.

    Raises UserError, beginning with `given`, for a config that describes no model, or another than the weights are of, and for weights that cannot
    be read.
    """
    _check_size(auto, folder, config, given)
    try:
        model, info = auto.from_pretrained(folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                                           trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True, **how)  # fmt: skip
    except (OSError, SafetensorError) as error:
        raise UserError(f"{given}: the weights cannot be read ({error}); copy or save the model again") from error
    if mismatched := sorted(str(entry[0]) for entry in info["mismatched_keys"]):
        raise UserError(f"{given}: config.json and weights differ in the shape of {listed(mismatched)}; restore the right config.json")
    return model, sorted(info["missing_keys"])


def _check_size(auto: type, folder: Path, config: PretrainedConfig, given: str) -> None:
    """UserError where config.json describes a model that cannot be built, or one that the weights are far too small for: it would be allocated
    all the same, and filled with noise."""
    if not 1 <= config.num_hidden_layers <= 1000:
        raise UserError(f"{given}: {config.num_hidden_layers} layers in config.json; restore the right one")
    try:
        with torch.device("meta"):
            wanted = sum(parameter.numel() for parameter in auto.from_config(config, trust_remote_code=False).parameters())
    except (ValueError, TypeError, RuntimeError, ArithmeticError, KeyError, AssertionError) as error:
        raise UserError(f"{given}: config.json describes no model ({' '.join(str(error).split())[:200]}); restore it") from error
    there = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    if wanted > 4 * there + 2**20:  # a byte a parameter is the least, and a trunk may lack its head
        raise UserError(f"{given}: config.json describes {wanted:,} parameters, the weights hold {there:,} bytes; restore the right one")


def listed(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
