"""The model beside its formats: an export into another folder than the model's makes a folder that loads as a model."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from transformers import AutoModel

from ds_distill.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from ds_distill.exporters.model import ExportModel, read_json
from ds_distill.exporters.sentence_embedding import write_sentence_transformers_files
from ds_distill.models.folder import ModelFolder, load_config
from ds_distill.models.loader_text import LOADER_LINE, loader_code
from ds_distill.models.loading import load_model
from ds_distill.models.low_rank import set_rank
from ds_distill.models.saving import follow_umask, portable_config, save_model_folder
from ds_distill.models.sentence_modules import MODULES
from ds_distill.reporting import provenance
from ds_distill.reporting.card_edits import set_metadata
from ds_distill.reporting.card_sections import MADE_WITH, PIPELINES, QUANTIZED, front_matter, usage_section
from ds_distill.reporting.provenance import parse_front_matter
from ds_distill.utils import hub
from ds_distill.utils.errors import UserError
from ds_distill.utils.files import write_atomically, write_json

# Servers choose a pipeline by these keys of a config.json.
TASK_KEYS = ("finetuning_task", "finetuning_length", "id2label", "label2id", "problem_type")


def publish_model(source: ExportModel, output: Path, name: str) -> None:
    """Write weights (fp32), config.json, tokenizer and a model card of `source` into `output`, unless they lie there.

    For an encoder the files that sentence-transformers reads are written too.

    Args:
        source: The model. Where `output` is its own folder nothing is done.
        output: An existing folder.
        name: The model's name in the card.

    Raises:
        UserError: `output` holds another model's config.json, tokenizer or weights.
    """
    if output.resolve() == source.folder.resolve():
        return
    partial = output / ".model.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _write(source, partial, name)
        _check_same_model(partial, output, source)
        is_new = not (output / "config.json").is_file()
        # config.json comes last, because with it the folder is a model
        for file in sorted(partial.rglob("*"), key=lambda file: file == partial / "config.json"):
            place = output / file.relative_to(partial)
            if file.is_file() and (not place.exists() or is_new and file.name != "README.md"):
                place.parent.mkdir(exist_ok=True)
                os.replace(file, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(source: ExportModel, folder: Path, name: str) -> None:
    model = source.model
    if source.head == "encoder":
        with_pooler, missing = load_model(
            AutoModel, ModelFolder(str(source.folder), "--model", source.folder), model.config
        )
        model = model if missing else with_pooler  # a pooler that the checkpoint has is kept
    set_rank(model.config, source.linear_rank)
    save_model_folder(model, source.reader, folder, source.inputs)
    if source.head == "encoder":
        config = cast(dict, read_json(folder / "config.json"))
        write_json(folder / "config.json", {key: value for key, value in config.items() if key not in TASK_KEYS})
        write_sentence_transformers_files(source.folder, model.config, source.reader.model_max_length, folder)
    (folder / "README.md").write_text(_make_card(source, name, embeds=(folder / MODULES).is_file()), encoding="utf-8")
    follow_umask(folder)


def _check_same_model(exported: Path, output: Path, source: ExportModel) -> None:
    """Raise UserError where the files in `output` belong to another model than the files `exported` for it."""
    if (output / "config.json").is_file():
        read_json(output / "config.json")  # raises where the file is damaged
        is_same = _normalize_config(output) == _normalize_config(exported)
        if is_same and (output / "tokenizer.json").is_file():
            is_same = tokenizer_fingerprint(load_tokenizer(output)) == tokenizer_fingerprint(source.reader)
        if not is_same:
            raise UserError(f"{output}: contains another model's config.json or tokenizer; choose another --output")
    if (output / "model.safetensors").is_file() and not _has_same_weights(
        exported / "model.safetensors", output / "model.safetensors"
    ):
        raise UserError(f"{output}: contains another model's model.safetensors; choose another --output")


def _normalize_config(folder: Path) -> dict:
    """Return what a folder's config.json states about its model, in the terms of this release of transformers."""
    config = portable_config(load_config(folder, str(folder)).to_dict())
    return {key: value for key, value in config.items() if key not in ("dtype", "transformers_version")}


def _has_same_weights(first: Path, second: Path) -> bool:
    """Return whether the weights that both files hold are equal, in fp32."""
    with safe_open(first, "pt") as first_file, safe_open(second, "pt") as second_file:
        return all(
            torch.equal(first_file.get_tensor(name).float(), second_file.get_tensor(name).float())
            for name in set(first_file.keys()) & set(second_file.keys())
        )


def _make_card(source: ExportModel, name: str, *, embeds: bool) -> str:
    """Return the source's own card for the same model, else a short one with what the source's card names.

    The card of a model of the Hub names that model as its base. That of a model which loads as no stock class has the
    lines that load it. `embeds` says whether sentence-transformers loads the folder.
    """
    file = source.folder / "README.md"
    card = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    named, loader = hub.name_in_cache(source.folder), loader_code(source.model)
    tags = ["sentence-transformers"] if embeds else []
    metadata = parse_front_matter(card)
    # the card of a model whose head is left out is not one of its encoder
    if metadata and (
        source.head != "encoder" or (MADE_WITH in card and metadata.get("pipeline_tag") == PIPELINES["encoder"])
    ):
        entries: dict[str, Any] = {"base_model": named[0]} if named else {}
        entries |= {"tags": list(dict.fromkeys([*metadata.get("tags", []), *tags]))} if tags else {}
        if loader and LOADER_LINE not in card:
            card = card.rstrip() + "\n\n" + usage_section(source.head, loader=loader)
        return set_metadata(card, **entries) if entries else card
    origin = provenance.from_model(source.folder)
    description = (
        f"The encoder of {name}, without its head." if source.head == "encoder" else f"{name}, in the formats below."
    )
    entries = {"base_model": origin.base_model, "language": origin.language, **origin.license, "tags": tags}
    card = front_matter(source.head, **entries) + f"# {name}\n\n{description} Exported with ds-distill.\n"
    return card + ("\n" + usage_section(source.head, loader=loader) if loader else "")


def declare_quantized(card: Path, source: ExportModel) -> None:
    """Have the card of an export of a model of the Hub tell the Hub that it is a quantized form of it."""
    if hub.name_in_cache(source.folder):
        write_atomically(card, set_metadata(card.read_text(encoding="utf-8"), base_model_relation=QUANTIZED))
