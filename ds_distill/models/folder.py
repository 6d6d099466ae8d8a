"""Checks of a Hugging Face folder before anything of it is loaded.

Where from_pretrained would raise a puzzling error, these checks raise one clear sentence. Functions
import torch and transformers only when they need them, so that a mistake that the files show is
reported before that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ds_distill.models.families import FAMILIES, get_family_by_type, supported
from ds_distill.run_folder import find_model
from ds_distill.utils import hub
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast


# Settings of a config that change how a model runs, not what it computes. A checkpoint carries those of
# the program that saved it.
_RUN_SETTINGS = (
    "chunk_size_feed_forward",
    "gradient_checkpointing",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "use_bfloat16",
    "use_cache",
)


@dataclass(frozen=True)
class ModelFolder:
    """A model that a user has named: found once, by `find_model_folder`, and handed on.

    Attributes:
        name: The folder or the hub name, as the user wrote it.
        option: The option or key that it was given to: "teacher =", "--model" or "--from".
        path: The folder that holds the model.
    """

    name: str
    option: str
    path: Path

    @property
    def given(self) -> str:
        """What errors about the folder begin with."""
        return f"{self.option} {self.name}"

    @property
    def title(self) -> str:
        """What sentences call the model."""
        return f"{self.option.removesuffix(' =')} {self.name}"

    @cached_property
    def config(self) -> PretrainedConfig:
        """The config; UserError where there is none of an encoder of a known family."""
        return load_config(self.path, self.given)

    @property
    def linear_rank(self) -> int | None:
        """The rank of the factors whose products the folder's linear layers are, see models.low_rank; None for none."""
        from ds_distill.models.low_rank import KEY

        rank = read_config(self.path, self.given).get(KEY)
        if rank is not None and (type(rank) is not int or rank < 1):
            raise UserError(
                f"{self.given}: {KEY} in config.json is {rank!r:.40}; make it a whole number, 1 or more, or remove it"
            )
        return rank

    @property
    def positions(self) -> int:
        """How many tokens the model reads at most."""
        return get_family_by_type(self.config.model_type).positions(self.config)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder has a tokenizer."""
        return (self.path / "tokenizer_config.json").is_file()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer; UserError where there is none."""
        from ds_distill.data.tokenizer import load_tokenizer

        return load_tokenizer(self.path)

    def check_files(self) -> ModelFolder:
        """Return self after the checks that need no torch.

        Raises:
            UserError: config.json names no known family, or the weights are absent or pickled, or an
                index names files outside the folder.
        """
        read_config(self.path, self.given)
        weight_files(self.path, self.given)
        return self


def find_model_folder(name: str, option: str = "teacher =", *, fetch: bool = True) -> ModelFolder:
    """Return the folder of a model; UserError, as in `resolve_model_folder`, where there is none."""
    return ModelFolder(name, option, resolve_model_folder(name, option, fetch=fetch))


def resolve_model_folder(path: str, option: str = "teacher =", *, weights: bool = True, fetch: bool = True) -> Path:
    """Return the folder of a checkpoint.

    That is `path` itself, the model in it where `path` is the --output of a command that made one,
    or the local Hugging Face cache's copy of the hub model of that name, which is fetched first
    where the cache lacks it. A folder without weights, such as one that earlier exports of the hub
    model have made, gives way to the cache's copy with weights.

    Ranks of a job call `preflight.checks.fetch_model` before, so that one of them fetches.

    Args:
        path: The folder or the name of a hub model, NAME or NAME@REVISION.
        option: What errors begin with, before the path.
        weights: Whether the model's weights are needed; if not, its tokenizer is.
        fetch: Whether a model may be fetched; if not, what the cache has of it is enough.

    Raises:
        UserError: Neither exists, or the model cannot be fetched.
    """
    folder = expand_user(path)
    if folder.is_dir() and _has_weights(found := find_model(folder)):
        return found
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{option} {path}: is a file; give the folder with config.json and model.safetensors")
    cached = hub.find_cached(path)
    if folder.is_dir():
        return cached if cached and _has_weights(cached) else find_model(folder)
    if cached and _is_whole(cached, weights):
        return cached
    repository, revision = hub.split_name(path)
    if not hub.NAME.fullmatch(repository):
        raise UserError(f"{option} {path}: no such folder; correct the path (relative ones start at {Path.cwd()})")
    command = hub.fetch_command(repository, revision)
    if "/" in repository and expand_user(repository).parent.is_dir():
        # a mistyped path must not fetch what a stranger has put on the Hub under that name
        raise UserError(
            f"{option} {path}: no such folder in {expand_user(repository).parent}/; correct the path, or fetch the "
            f"Hub's model of that name once with `{command}`"
        )
    if hub.is_offline() or not fetch:
        if cached:
            return cached  # the caller's checks say what it lacks
        raise UserError(
            f"{option} {path}: no such folder, and no model of that name in the Hugging Face cache; correct the path, "
            f"or, because the network is not used (--offline or HF_HUB_OFFLINE), run `{command}` where it may be"
        )
    fetched = hub.fetch(path, f"{option} {path}", weights=weights)
    return fetched or resolve_model_folder(path, option, weights=weights)


def _is_whole(cached: Path, weights: bool) -> bool:
    """Return whether a folder of the cache has all of the weights, or a tokenizer if no weights are needed."""
    if not weights:
        return any(any(cached.glob(name)) for name in ("tokenizer.json", "vocab.*", "*.model"))
    try:
        return (cached / "config.json").is_file() and bool(weight_files(cached, ""))
    except UserError:
        return False


def _has_weights(folder: Path) -> bool:
    """Return whether there are weights of any kind, including kinds that are refused."""
    return any(file.suffix in (".safetensors", ".bin", ".h5", ".msgpack") for file in folder.iterdir())


def weight_files(folder: Path, given: str) -> list[Path]:
    """Return the safetensors files that from_pretrained reads, without a look at their headers.

    Raises:
        UserError: Begins with `given`. There are no such files, an index does not fit them, or Git
            LFS has not fetched a file.
    """
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
            raise UserError(
                f"{given}: {index.name} names {strange[0]!r}, which is outside the folder; save the model again"
            )
        if index.name == "model.safetensors.index.json" and not (folder / "model.safetensors").is_file():
            files = [folder / name for name in sorted(names)]
            if absent := [file.name for file in files if not file.is_file()]:
                raise UserError(
                    f"{given}: {index.name} names {join_names(absent)}, which is missing from the folder; "
                    "copy the whole model again"
                )
    if not files:
        pickled = sorted(file.name for file in folder.glob("*.bin"))
        problem = f"only {', '.join(pickled)}, and pickled weights are not loaded" if pickled else "no weights"
        raise UserError(f"{given}: {problem}; save the model with save_pretrained, which writes model.safetensors")
    for file in files:
        check_not_lfs_pointer(file)
    return files


def read_config(folder: Path, given: str) -> dict:
    """Return the contents of config.json.

    Raises:
        UserError: Begins with `given`. There is no config.json, or it describes no encoder of a
            known family.
    """
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
        raise UserError(f"{given}: model_type is {model_type!r}{supported(model_type)}")
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{given}: the weights are quantized (quantization_config in config.json); give the model in fp32 or 16 bit"
        )
    if config.get("is_decoder"):
        raise UserError(f"{given}: is_decoder is true, so this is a causal model; give a bidirectional encoder")
    # transformers 5 dropped relative positions and would load such a checkpoint as if they were
    # absolute. A family with rotary positions never had others: Ettin's and mmBERT's configs say "sans_pos".
    if config.get("position_embedding_type", "absolute") != "absolute" and not FAMILIES[model_type].rotary:
        kind = config["position_embedding_type"]
        raise UserError(f"{given}: position_embedding_type is {kind!r}; give a model with absolute positions")
    return config


def load_config(folder: Path, given: str) -> PretrainedConfig:
    """Return the config of an encoder of a known family, with the defaults of all that does not change its outputs.

    Raises:
        UserError: Begins with `given`. There is no config, or an unfit one.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    from ds_distill.models.config_sizes import check_sizes, check_written_sizes
    from ds_distill.models.layer_shapes import check_layer_shapes
    from ds_distill.models.low_rank import set_rank

    unfit = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError, StrictDataclassError)
    written = read_config(folder, given)
    family = get_family_by_type(written["model_type"])
    try:
        check_written_sizes(written, family)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        family.standardize(config)
        check_sizes(config, family)
        check_layer_shapes(config)
    except unfit as error:
        raise UserError(
            f"{given}: config.json cannot be used ({' '.join(str(error).split())[:200]}); restore it"
        ) from error
    set_rank(config, None)  # A folder's weights are whole.
    config._attn_implementation = None  # it may name a kernel on the hub, and that would be remote code
    usual = type(config)()
    for name in _RUN_SETTINGS:
        if hasattr(usual, name):
            setattr(config, name, getattr(usual, name))
        elif hasattr(config, name):
            delattr(config, name)
    return config


def join_names(names: list[str], most: int = 8) -> str:
    """Join the first `most` names with commas and count the rest."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
