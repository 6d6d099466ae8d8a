"""What a model was made of, and where, as its model card tells it.

Nothing is guessed: what no file names is left out.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from ds_distill.models.sentence_modules import is_embedder
from ds_distill.utils import hub
from ds_distill.utils.files import write_json
from ds_distill.utils.machine import package_versions, processor_name

LICENSE_KEYS = ("license", "license_name", "license_link")
VERSIONS = ("ds-distill", "torch", "deepspeed", "transformers", "tokenizers")


@dataclass(frozen=True)
class Provenance:
    """What a model was made of.

    Attributes:
        base: The name of the model that it started from or was distilled from; None for a new model.
        base_model: Its repository on the Hub, or the ones that its own card names.
        revision: Its commit there.
        license: The entries of its license in a model card; empty where neither its card nor its
            config.json names one.
        language: The language that its card names.
        start: The name of another model that it started from; None where there was none.
        layers: Of which of its layers each layer started, counted from 0; None where none was copied.
        embeddings: Whether its word embeddings started from those of that model, where none of its layers did.
        base_layers: The number of its layers.
        distilled: Whether it was the teacher.
        sentence_transformers: Whether sentence-transformers makes dense embeddings of it.
        datasets: The training text's names on the Hub.
        hardware: The devices of the training.
        versions: The packages of the training, by name.
        further_teachers: The names of its other teachers, where it had several.
    """

    base: str | None = None
    base_model: str | list[str] | None = None
    revision: str | None = None
    license: dict[str, str] = field(default_factory=dict)
    language: str | list[str] | None = None
    start: str | None = None
    layers: list[int] | None = None
    embeddings: bool = False
    base_layers: int | None = None
    distilled: bool = False
    sentence_transformers: bool = False
    datasets: list[str] = field(default_factory=list)
    hardware: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    further_teachers: list[str] = field(default_factory=list)


def from_model(folder: Path, **known: Any) -> Provenance:
    """Return the provenance of a model that is made of the one in `folder`; `known` has the other attributes."""
    card = parse_front_matter(_read(folder / "README.md"))
    named = hub.name_in_cache(folder)
    base_model = named[0] if named else card.get("base_model")
    license = {key: card[key] for key in LICENSE_KEYS if isinstance(card.get(key), str)}
    if not license and isinstance(stated := _read_config(folder).get("license"), str):
        license = {"license": stated}
    return Provenance(
        base=name_model(folder),
        base_model=base_model if _is_text(base_model) else None,
        revision=named[1] if named else None,
        license=license,
        language=card["language"] if _is_text(card.get("language")) else None,
        sentence_transformers=is_embedder(folder),
        **known,
    )


def from_models(folders: Sequence[Path], **known: Any) -> Provenance:
    """Return the provenance of a model that is made of the first of several teachers and learns from all of them.

    Its license is given where all of them have the same.
    """
    first, *others = (from_model(folder, **known) for folder in folders)
    if not others or not first.distilled:
        return first
    repositories = [
        name
        for origin in (first, *others)
        for name in ([origin.base_model] if isinstance(origin.base_model, str) else origin.base_model or [])
    ]
    return replace(
        first,
        base_model=list(dict.fromkeys(repositories)) or None,
        license=first.license if all(other.license == first.license for other in others) else {},
        further_teachers=[str(other.base) for other in others],
    )


def name_model(folder: Path) -> str:
    """Return a model's name on the Hub where its folder is in the cache, else its folder's name."""
    named = hub.name_in_cache(folder)
    return named[0] if named else _name_folder(folder)


def read(file: Path) -> Provenance:
    """Return what `write` has written; that of an unknown model where there is no such file."""
    if not file.is_file():
        return Provenance()
    known = json.loads(file.read_text(encoding="utf-8"))
    return replace(Provenance(), **{key.name: known[key.name] for key in fields(Provenance) if key.name in known})


def write(provenance: Provenance, file: Path) -> None:
    """Write a provenance as JSON."""
    write_json(file, asdict(provenance))


def name_datasets(inputs: Iterable[str]) -> list[str]:
    """Return the names on the Hub among the inputs of a corpus, which are hf:NAME[:CONFIG][@SPLIT][#COLUMN]."""
    names = [re.split("[:@#]", given.removeprefix("hf:"))[0] for given in inputs if given.startswith("hf:")]
    return list(dict.fromkeys(name for name in names if hub.NAME.fullmatch(name) and not Path(name).is_dir()))


def describe_hardware(ranks: int = 1) -> str:
    """Return the devices of this run: how many of which GPU, or the processor."""
    import torch

    if torch.cuda.is_available():
        return f"{ranks} × {torch.cuda.get_device_name()}"
    return f"{ranks} {'process' if ranks == 1 else 'processes'} on a CPU ({processor_name()})"


def describe_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that train."""
    return package_versions(VERSIONS)


def parse_front_matter(card: str) -> dict[str, Any]:
    """Return the YAML that a model card begins with; empty where it has none, or none that can be read."""
    if not card.startswith("---\n") or "\n---\n" not in card[4:]:
        return {}
    try:
        metadata = yaml.safe_load(card[4 : card.index("\n---\n", 4)])
    except yaml.YAMLError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _name_folder(folder: Path) -> str:
    """Return the name of a folder, with that of the run in which a command has put it.

    A fine-tuning's is RUN/seed=0/model, and that of one of several tasks RUN/tasks/TASK.
    """
    parts = Path(os.path.abspath(folder)).parts
    if parts[-1] in ("export", "model"):
        return "/".join(parts[-3:] if "seed=" in parts[-2] else parts[-2:])
    return "/".join(parts[-3:] if parts[-2:-1] == ("tasks",) else parts[-1:])


def _is_text(value: object) -> bool:
    return isinstance(value, str) or isinstance(value, list) and all(isinstance(item, str) for item in value)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(_read(folder / "config.json") or "{}")
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}
