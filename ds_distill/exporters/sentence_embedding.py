"""The files that tell sentence-transformers, and servers that follow it, how token outputs become one embedding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from transformers import PretrainedConfig

from ds_distill.exporters.model import read_json
from ds_distill.models.families import get_family_by_type
from ds_distill.models.layer_shapes import is_pruned
from ds_distill.models.sentence_modules import DENSE_KINDS, MODULES, is_embedder, module_kinds
from ds_distill.utils.console import log
from ds_distill.utils.files import copy_within

# Flags of 1_Pooling/config.json that every release and text-embeddings-inference know. The keys are
# the names that sentence-transformers 5 uses instead.
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
KEPT_SETTINGS = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
LENGTHS, SETTINGS = "sentence_bert_config.json", "config_sentence_transformers.json"


def write_sentence_transformers_files(source: Path, config: PretrainedConfig, max_length: int, folder: Path) -> None:
    """Write modules.json, the modules' folders and sentence_bert_config.json into `folder`.

    They are those of the source where it is a sentence-transformers folder, else they describe mean
    pooling. Of a model of another width than the source, the modules before the first with weights
    are written. Nothing is written where the source is for sparse embeddings, or for a model whose layers have shapes
    of their own: sentence-transformers builds the stock class, and would give it random weights.

    Args:
        source: The folder of the model that the one in `folder` was made of.
        config: The config of the model in `folder`.
        max_length: The number of tokens that it reads.
        folder: An existing folder.
    """
    if is_pruned(config):
        if is_embedder(source):
            log(
                f"{source}: its {MODULES} is left out, because sentence-transformers cannot load layers that were "
                "pruned to shapes of their own; the README.md has the lines that load the model"
            )
        return
    if (kinds := module_kinds(source)) and not is_embedder(source):
        log(f"{source}: its {MODULES} is left out, because its first module, {kinds[0]}, is not for dense embeddings")
        return
    width = get_family_by_type(config.model_type).dims(config).width
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for kind, settings, weights in _modules_after_transformer(source, width):
        number = len(modules)
        path = f"{number}_{kind}"
        modules.append(
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        )
        (folder / path).mkdir(exist_ok=True)
        _write_json(folder / path / "config.json", settings)
        if weights:
            copy_within(weights, folder / path / "model.safetensors", source)
    _write_json(folder / MODULES, modules)
    source_settings = _read_dict(source / LENGTHS)
    if isinstance(source_settings.get("max_seq_length"), int):
        max_length = min(max_length, source_settings["max_seq_length"])
    _write_json(
        folder / LENGTHS,
        {"max_seq_length": max_length, "do_lower_case": bool(source_settings.get("do_lower_case", False))},
    )
    settings = _read_dict(source / SETTINGS)
    if selected := {key: settings[key] for key in KEPT_SETTINGS if key in settings}:
        _write_json(folder / SETTINGS, selected)


def copy_sentence_transformers_files(source: Path, folder: Path) -> None:
    """Copy what `write_sentence_transformers_files` has written into `source`, if anything, into `folder`."""
    if not (source / MODULES).is_file():
        return
    for name in (MODULES, LENGTHS, SETTINGS):
        if (source / name).is_file():
            copy_within(source / name, folder / name, source)
    for module in cast(list, read_json(source / MODULES))[1:]:
        if path := Path(str(module["path"])).name:  # a folder in it, and none elsewhere
            copy_within(source / path, folder / path, source)


def _modules_after_transformer(source: Path, width: int) -> list[tuple[str, dict, Path | None]]:
    """Return (kind, config, weights or None) of each module after the encoder; mean pooling if the source has none."""
    file, config = source / MODULES, _read_dict(source / "config.json")
    fits = width == config.get("hidden_size", config.get("dim", width))
    listed = read_json(file) if file.is_file() else []
    modules: list[tuple[str, dict, Path | None]] = []
    for module in listed[1:] if isinstance(listed, list) else ():
        kind, module_folder = (
            str(module.get("type", "")).rsplit(".", 1)[-1],
            source / Path(str(module.get("path", ""))).name,
        )
        if kind not in DENSE_KINDS:
            log(
                f"{source}: its module {kind} is none of {', '.join(sorted(DENSE_KINDS))}; the export computes the "
                "embeddings before this module"
            )
            break
        settings, weights = _read_dict(module_folder / "config.json"), module_folder / "model.safetensors"
        if not weights.is_file() and list(module_folder.glob("*.bin")):
            log(
                f"{source}: {module_folder.name} has pickled weights, which are not read; the export computes "
                "the embeddings before this module"
            )
            break
        if weights.is_file() and not fits:
            log(
                f"{source}: the weights of {module_folder.name} are for embeddings of another width than this model's "
                f"{width}; the export computes the embeddings before this module"
            )
            break
        modules.append(
            (kind, _pooling(settings, width) if kind == "Pooling" else settings, weights if weights.is_file() else None)
        )
    return modules or [("Pooling", _pooling({}, width), None)]


def _pooling(settings: dict, width: int) -> dict:
    """Return the settings of a Pooling module under the names that all releases read."""
    modes = settings.get("pooling_mode", [mode for mode, flag in POOLING_FLAGS.items() if settings.get(flag)])
    modes = [modes] if isinstance(modes, str) else list(modes) or ["mean"]
    return {
        "word_embedding_dimension": width,
        **{flag: mode in modes for mode, flag in POOLING_FLAGS.items()},
        "include_prompt": settings.get("include_prompt", True),
    }


def _read_dict(file: Path) -> dict:
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
