"""Data sets of the Hub as text: each is resolved once, and worker processes are given what was found.

To resolve one takes several requests, and a worker that did so for each piece would soon be refused (HTTP 429).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable
from typing import Any, cast

from ds_distill.utils.errors import UserError

_HUB = re.compile(r"hf:(?P<name>[^:@#]+)(:(?P<config>[^@#]+))?(@(?P<split>[^#]+))?(#(?P<column>.+))?$")
_opened: dict[tuple[str, bool], Any] = {}  # the data sets by (input, streaming)
_sent: dict[tuple[str, bool], bytes] = {}  # the same, pickled, as another process has sent them


def hub_parts(given: str) -> re.Match[str]:
    """Return the parts of an hf: input by name; raise UserError for one that is not valid."""
    parts = _HUB.match(given)
    if not parts:
        raise UserError(f"{given}: not a valid hf: input; write hf:NAME[:CONFIG][@SPLIT][#COLUMN], in this order")
    return parts


def resolve_hub_set(given: str, streaming: bool):
    """Return the data set of an hf: input, resolved anew by the library `datasets`; no hub script is run.

    Raises:
        UserError: If it cannot be loaded.
    """
    import datasets

    parts = cast(re.Match[str], _HUB.match(given))  # split_inputs has checked it.
    try:
        data = datasets.load_dataset(
            parts["name"], parts["config"], split=parts["split"] or "train", streaming=streaming
        )
    except Exception as error:
        # A missing name, network or config each raises a class of its own.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{given}: cannot be loaded ({lines[0][:200]}); check the name, the config and the split, and the network "
            "or the local cache"
        ) from error
    _opened[given, streaming] = data
    return data


def hub_set(given: str, streaming: bool):
    """Return the data set of an hf: input as this process, or the one that started it, has resolved it."""
    key = (given, streaming)
    if key in _sent:
        _opened[key] = pickle.loads(_sent.pop(key))
    return _opened[key] if key in _opened else resolve_hub_set(given, streaming)


def hub_bytes(given: str, streaming: bool) -> int | None:
    """Return the bytes of a data set's rows, all columns included; None where it does not tell."""
    data = hub_set(given, streaming)
    if not streaming:
        return int(data.data.nbytes)
    split = (data.info.splits or {}).get(str(data.split))
    return split.num_bytes or None if split else None


def pack_hub_sets(keys: Iterable[tuple[str, bool]]) -> dict[tuple[str, bool], bytes]:
    """Return the data sets of inputs, as another process takes them with `unpack_hub_sets`."""
    return {key: _sent.get(key) or pickle.dumps(hub_set(*key)) for key in keys}


def unpack_hub_sets(packed: dict[tuple[str, bool], bytes]) -> None:
    """Take the data sets that another process has resolved; each is opened when it is first read."""
    _sent.update(packed)
