"""A Hugging Face folder, looked over before anything of it is loaded: what from_pretrained would answer with a puzzle is one sentence here."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, StrictDataclassError
from transformers import AutoConfig, PretrainedConfig

from ds_distill.errors import UserError
from ds_distill.models.families import FAMILIES


def resolve_model_folder(path: str, option: str = "teacher =") -> Path:
    """The folder of a checkpoint: `path` itself, or the local Hugging Face cache's copy of the hub model of that name.

    option: what errors begin with, before the path. Never touches the network: hundreds of ranks must not each download.
    Raises UserError where neither exists.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
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
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(f"{given}: no config.json in the folder; give a folder written by save_pretrained, such as a run's export/")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{given}: config.json is not a JSON object ({error}); save the model again") from None
    if model_type not in FAMILIES:
        raise UserError(f"{given}: model_type is {model_type!r}; supported: {', '.join(FAMILIES)}")
    if config.get("is_decoder"):
        raise UserError(f"{given}: is_decoder is true, a causal model; give a bidirectional encoder")
    # transformers 5 dropped relative positions and would load such a checkpoint as if they were absolute
    if config.get("position_embedding_type", "absolute") != "absolute":
        kind = config["position_embedding_type"]
        raise UserError(f"{given}: position_embedding_type is {kind!r}; give a model with absolute positions")
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
    try:
        return folder, AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(f"{given}: config.json cannot be used ({' '.join(str(error).split())[:200]}); restore it") from error
