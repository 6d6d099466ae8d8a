"""The modules that sentence-transformers puts after an encoder, to make one embedding of a text."""

from __future__ import annotations

import json
from pathlib import Path

MODULES = "modules.json"
# What may follow an encoder whose embeddings are dense, under these names in all releases. Modules of other kinds are
# for sparse embeddings, or somebody's own code.
DENSE_KINDS = {"Pooling", "Dense", "Normalize", "LayerNorm", "Dropout"}


def module_kinds(folder: Path) -> list[str]:
    """Return the kinds of a folder's modules, such as ["Transformer", "Pooling"]; empty where it lists none."""
    try:
        listed = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        return [str(module["type"]).rsplit(".", 1)[-1] for module in listed]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def is_embedder(folder: Path) -> bool:
    """Return whether sentence-transformers loads a folder's encoder, and makes dense embeddings of it."""
    return module_kinds(folder)[:1] == ["Transformer"]
