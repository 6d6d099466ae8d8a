"""Further held-out texts of a run; each has a name for its figures, and keeps it."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import cast

from ds_distill.data.files import COMPRESSED_SUFFIXES, FILE_FORMATS
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.run_data import prepare_run_tokens
from ds_distill.data.sources import corpus_identity, split_inputs
from ds_distill.distributed.process_group import broadcast_object, run_on_rank0
from ds_distill.recipe import Recipe
from ds_distill.run_folder import RunFolder


def heldout_sets(texts: list[str], tokens: Path, recipe: Recipe, output: Path) -> dict[str, Path]:
    """Collective: prepare the held-out texts and return the folders of their tokens by name.

    The folders are under output/heldout.

    Raises:
        UserError: If a text that the run was measured on has changed.
    """
    named: dict[str, str] = {}
    run_on_rank0(lambda: named.update(heldout_names(texts, recipe, RunFolder(output).heldout)))
    return {
        name: prepare_run_tokens(
            [text],
            str(tokens / "tokenizer"),
            recipe,
            RunFolder(output).heldout / name,
            1.0,
            bound=output,
            option="--heldout",
        )
        for name, text in cast(dict[str, str], broadcast_object(named)).items()
    }


def heldout_names(texts: list[str], recipe: Recipe, folder: Path) -> dict[str, str]:
    """Return the texts by name, sorted by name, whatever their order.

    A text that was measured before, and so has tokens in `folder`, keeps its name, even where it
    has been moved since. Another text is named after its file, without the suffixes of its kind.
    Where two would have the same name, it includes as many of the folders above as tell them apart.
    """
    manifests = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*/manifest.json"))
    }
    places = {manifest["corpus"][0][0]: name for name, manifest in manifests.items()}
    pieces = {text: split_inputs([text], column=recipe.data.column, streaming=recipe.data.streaming) for text in texts}
    given = {corpus_identity([text], pieces[text])[0][0]: text for text in texts}
    contents = {
        manifest.get("content"): name for name, manifest in manifests.items() if manifest["corpus"][0][0] not in given
    }
    named: dict[str, str] = {}
    for place, text in list(given.items()):
        name = places.get(place) or (contents.get(content_fingerprint(pieces[text])) if contents else None)
        if name:
            named[name] = text
            del given[place]
    for depth in range(1, 1 + max((len(_parts(place)) for place in given), default=0)):
        names = {place: "_".join(_parts(place)[-depth:]) for place in given}
        for place, name in names.items():
            if list(names.values()).count(name) == 1 and name not in named and name not in manifests:
                named[name] = given.pop(place)
    for place, text in given.items():
        named[f"{_parts(place)[-1]}_{hashlib.sha256(place.encode()).hexdigest()[:8]}"] = text
    return dict(sorted(named.items()))


def _parts(place: str) -> list[str]:
    """Return the parts of a text's path, or of a hub data set's name, each fit to name a folder.

    The suffixes of the text's kind are left out.
    """
    *above, last = place.strip("/").split("/")
    name, mark, column = last.partition("#")
    while Path(name).suffix.lower() in (*COMPRESSED_SUFFIXES, *FILE_FORMATS):
        name = Path(name).stem
    return [re.sub(r"[^\w.#@+=-]+", "_", part).strip(".") or "text" for part in (*above, name + mark + column)]
