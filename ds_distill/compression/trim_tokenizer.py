"""A smaller vocabulary for a tokenizer, with which kept texts are split into the same tokens.

A tokenizer of many languages or domains has many pieces that the text at hand never uses. Abdaoui et
al. 2020 (Load What You Need) reduce multilingual BERT in this way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

from ds_distill.utils.errors import UserError

CONTINUES = "##"  # before WordPiece's pieces inside a word, unless the tokenizer states another mark


def trim_tokenizer(content: dict[str, Any], wanted: Iterable[str]) -> tuple[dict[str, Any], list[int]]:
    """Return (the content of tokenizer.json with fewer tokens, the former ids of its tokens, in their new order).

    A text of whose tokens all are wanted is split into the same tokens as before, because a token that its split does
    not use does not affect it:

    - WordPiece takes the longest piece that fits. One that is not used was never the longest. (A word that was unknown
      because it had no split may get one.)
    - Unigram takes the split of the highest score. It stays the highest among fewer splits.
    - BPE merges pairs in a fixed order. All merges that lead to a wanted token stay, and so do their results.

    Added and special tokens stay, and so do the pieces that other texts are split into at worst: single characters and
    bytes.

    Args:
        content: The content of tokenizer.json.
        wanted: The tokens to keep.

    Raises:
        UserError: The tokenizer is of another kind.
    """
    check_kind(content, "tokenizer.json")
    model = content["model"]
    kind = model["type"]
    ids = {piece: number for number, (piece, _) in enumerate(model["vocab"])} if kind == "Unigram" else model["vocab"]
    added = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}
    kept = (set(wanted) | _KINDS[kind](model, ids)) & ids.keys()
    kept |= {name for name in (model.get("unk_token"),) if name in ids} | added.keys() & ids.keys()
    if kind == "Unigram" and model.get("unk_id") is not None:
        kept.add(model["vocab"][model["unk_id"]][0])
    if kind == "BPE":
        kept |= _find_parts(model, kept)
    former = sorted({ids[token] for token in kept} | set(added.values()))
    new_ids = {number: place for place, number in enumerate(former)}
    trimmed = copy.deepcopy(content)
    _renumber(trimmed["model"], kept, ids, new_ids)
    for entry in trimmed.get("added_tokens") or []:
        entry["id"] = new_ids[entry["id"]]
    _renumber_marks(trimmed.get("post_processor"), new_ids)
    if trimmed.get("padding"):
        trimmed["padding"]["pad_id"] = new_ids[trimmed["padding"]["pad_id"]]
    return trimmed, former


def check_kind(content: dict[str, Any], given: str) -> None:
    """Raise UserError, beginning with `given`, where the tokenizer of this tokenizer.json is of an unknown kind."""
    kind = content["model"].get("type")
    if kind not in _KINDS:
        raise UserError(
            f"{given}: a tokenizer of the kind {kind} cannot be trimmed; give one of the kinds {', '.join(_KINDS)}, "
            "with its model"
        )


def _keep_wordpiece(model: dict, ids: dict[str, int]) -> set[str]:
    """Return the pieces of one character, at the beginning of a word and inside it."""
    mark = model.get("continuing_subword_prefix", CONTINUES)
    return {piece for piece in ids if len(piece.removeprefix(mark)) == 1}


def _keep_unigram(model: dict, ids: dict[str, int]) -> set[str]:
    """Return the pieces of one character, those of bytes, and the one of the lowest score.

    The score of an unknown character is made of the lowest.
    """
    lowest = min(model["vocab"], key=lambda entry: entry[1])[0]
    return {piece for piece in ids if len(piece) == 1 or _is_byte(piece)} | {lowest}


def _keep_bpe(model: dict, ids: dict[str, int]) -> set[str]:
    """Return the pieces that no merge makes: characters or bytes."""
    return ids.keys() - {made for _, made in _merges(model)}


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


_KINDS: dict[str, Callable[[dict, dict[str, int]], set[str]]] = {
    "WordPiece": _keep_wordpiece,
    "Unigram": _keep_unigram,
    "BPE": _keep_bpe,
}


def _merges(model: dict) -> list[tuple[tuple[str, str], str]]:
    """Return each merge as (its two parts, what it makes). Older files have the parts as one text with a space."""
    mark = model.get("continuing_subword_prefix") or ""
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    return [((left, right), left + right.removeprefix(mark)) for left, right in pairs]


def _find_parts(model: dict, kept: Iterable[str]) -> set[str]:
    """Return everything that merges make on their way to the tokens that are kept."""
    made_of: dict[str, set[str]] = {}
    for pair, made in _merges(model):
        made_of.setdefault(made, set()).update(pair)
    found, unseen = set[str](), set(kept)
    while unseen:
        found |= unseen
        unseen = {part for token in unseen for part in made_of.get(token, ())} - found
    return found


def _renumber(model: dict, kept: set[str], ids: dict[str, int], new_ids: dict[int, int]) -> None:
    """Leave the kept tokens alone in the model of a tokenizer, under their new ids."""
    if model["type"] == "Unigram":
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
        if model.get("unk_id") is not None:
            model["unk_id"] = new_ids[model["unk_id"]]
        return
    in_order = sorted(kept, key=ids.__getitem__)
    model["vocab"] = {token: new_ids[ids[token]] for token in in_order}
    if model["type"] == "BPE":
        model["merges"] = [
            merge
            for merge, (parts, made) in zip(model["merges"], _merges(model), strict=True)
            if {*parts, made} <= kept
        ]


def _renumber_marks(part: Any, new_ids: dict[int, int]) -> None:
    """Give the special tokens that a post-processor puts around texts their new ids."""
    if isinstance(part, list):
        for entry in part:
            _renumber_marks(entry, new_ids)
    elif isinstance(part, dict):
        for name in ("sep", "cls"):  # of BertProcessing and RobertaProcessing, each [token, id]
            if isinstance(part.get(name), list):
                part[name][1] = new_ids[part[name][1]]
        for entry in (part.get("special_tokens") or {}).values():  # of TemplateProcessing
            entry["ids"] = [new_ids[number] for number in entry["ids"]]
        for inner in part.get("processors") or []:
            _renumber_marks(inner, new_ids)
