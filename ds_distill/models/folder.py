"""A Hugging Face folder, looked over before anything of it is loaded: what from_pretrained would answer with a puzzle is one sentence here.

torch and transformers are imported by what needs them: a mistake that the files tell is said before that.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ds_distill.models.families import FAMILIES, family_of_type
from ds_distill.run_folder import find_model
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve_model_folder(path: str, option: str = "teacher =") -> Path:
    """The folder of a checkpoint: `path` itself, the model in it where it is the --output of a command that made one, or the local Hugging Face
    cache's copy of the hub model of that name.

    A folder without weights, such as one that earlier exports of the hub model have made, gives way to the cache's copy with them.

    option: what errors begin with, before the path. Never touches the network: hundreds of ranks must not each download.
    Raises UserError where neither exists.
    """
    folder = expand_user(path)
    if folder.is_dir() and _has_weights(found := find_model(folder)):
        return found
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option} {path}: a file; give the folder that holds config.json and model.safetensors")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        cached = None
    if folder.is_dir():
        return cached if cached and _has_weights(cached) else find_model(folder)
    if cached:
        return cached
    if not _HUB_NAME.fullmatch(path):
        raise UserError(f"{option} {path}: no such folder; correct the path")
    raise UserError(
        f"{option} {path}: no such folder, and no model of that name in the Hugging Face cache; "
        f"correct the path, or fetch a hub model once with `hf download {path}`"
    )


def _has_weights(folder: Path) -> bool:
    """Whether there are weights of any kind, those that are refused for their kind too."""
    return any(file.suffix in (".safetensors", ".bin", ".h5", ".msgpack") for file in folder.iterdir())


def open_model_folder(path: str, option: str = "teacher =") -> tuple[Path, PretrainedConfig]:
    """(folder, config) of an encoder of a known family with safetensors in it.

    No remote code, no network. Raises UserError, beginning with `option` and the path, for a missing folder, a missing or unfit config, a model
    that is no bidirectional encoder with absolute positions, pickled or absent weights, and an index that names files outside of the folder.
    """
    folder = check_model_files(path, option)
    return folder, config_of(folder, f"{option} {path}")


def check_model_files(path: str, option: str = "teacher =") -> Path:
    """The folder of a model, of which this much can be told without torch: config.json names a known family, and the weights are there.

    Raises UserError as open_model_folder does.
    """
    folder, given = resolve_model_folder(path, option), f"{option} {path}"
    read_config(folder, given)
    weight_files(folder, given)
    return folder


def weight_files(folder: Path, given: str) -> list[Path]:
    """The safetensors files that from_pretrained reads, their headers not yet looked at. Raises UserError, beginning with `given`, where there are
    none, where an index does not fit them, and for a file that Git LFS has not fetched."""
    files = sorted(folder.glob("model*.safetensors"))
    if (folder / "model.safetensors").is_file():
        files = [folder / "model.safetensors"]
    for index in folder.glob("*.safetensors.index.json"):
        check_not_lfs_pointer(index)
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{given}: {index.name} cannot be read ({error}); save the model again") from None
        if strange := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
            raise UserError(f"{given}: {index.name} names {strange[0]!r}, outside of the folder; save the model again")
        if index.name == "model.safetensors.index.json" and not (folder / "model.safetensors").is_file():
            files = [folder / name for name in sorted(names)]
            if absent := [file.name for file in files if not file.is_file()]:
                raise UserError(
                    f"{given}: {index.name} names {listed(absent)}, which the folder lacks; copy the model again, whole"
                )
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        found = f"only {', '.join(pickled)}, and pickled weights are not loaded" if pickled else "no weights"
        raise UserError(f"{given}: {found}; save the model with save_pretrained, which writes model.safetensors")
    for file in files:
        check_not_lfs_pointer(file)
    return files


def read_config(folder: Path, given: str) -> dict:
    """What config.json says. Raises UserError, beginning with `given`, where there is none, or one of no encoder of a known family."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise UserError(
            f"{given}: no config.json in the folder; give a folder written by save_pretrained, such as a run's export/"
        )
    check_not_lfs_pointer(config_file)
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{given}: config.json is not a JSON object ({error}); save the model again") from None
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{given}: model_type is {model_type!r}; supported: {', '.join(FAMILIES)}")
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{given}: quantised weights (quantization_config in config.json); give the model in fp32 or 16 bit"
        )
    if config.get("is_decoder"):
        raise UserError(f"{given}: is_decoder is true, a causal model; give a bidirectional encoder")
    # transformers 5 dropped relative positions and would load such a checkpoint as if they were absolute
    if config.get("position_embedding_type", "absolute") != "absolute":
        kind = config["position_embedding_type"]
        raise UserError(f"{given}: position_embedding_type is {kind!r}; give a model with absolute positions")
    return config


def config_of(folder: Path, given: str) -> PretrainedConfig:
    """The config of an encoder of a known family. Raises UserError, beginning with `given`, where there is none, or an unfit one."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    model_type = read_config(folder, given)["model_type"]
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family = family_of_type(model_type)
        if not all(isinstance(number, int) for number in (family.positions(found), *family.measures(found)[:4])):
            raise ValueError("its sizes are no whole numbers")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise UserError(
            f"{given}: config.json cannot be used ({' '.join(str(error).split())[:200]}); restore it"
        ) from error
    found._attn_implementation = None  # it may name a kernel on the hub, which is code
    found.return_dict = True
    return found


def listed(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
