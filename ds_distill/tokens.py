"""The tokens that a run reads: prepared once by its first rank, bound to the run, opened in the run's order."""

import copy
import json
from functools import partial
from pathlib import Path

from ds_distill.claim import check_shared
from ds_distill.console import progress, say
from ds_distill.data.batches import BatchOrder, heldout_batches
from ds_distill.data.masking import Masker
from ds_distill.data.prepare import prepare
from ds_distill.data.sources import described, pieces_of
from ds_distill.data.store import TokenStore
from ds_distill.data.tokenizer import continuing_pieces, load_tokenizer, tokenizer_fingerprint
from ds_distill.errors import UserError
from ds_distill.recipe import Recipe
from ds_distill.training.ranks import from_every_rank, on_first_rank


def prepare_tokens(inputs: list[str], tokenizer, folder: Path, recipe: Recipe, heldout_fraction: float | None = None) -> dict:
    """data.prepare with the recipe's settings; returns its manifest."""
    d = recipe.data
    with progress(None, "tokens", "B") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        return prepare(inputs, tokenizer, folder, mode=d.mode, sequence_length=d.sequence_length, seed=recipe.training.seed, workers=d.workers,
                       heldout_fraction=d.heldout_fraction if heldout_fraction is None else heldout_fraction, column=d.column,
                       streaming=d.streaming, progress=show)  # fmt: skip


def tokens_for(corpus: list[str], tokenizer_folder: str, recipe: Recipe, folder: Path, heldout_fraction: float | None = None,
               bound: Path | None = None) -> Path:  # fmt: skip
    """Collective: tokens of `corpus` in `folder`, made by the first rank unless they are there, from the same text in the same way.

    bound: folder of the run they are for; once it has begun, other text is a UserError.
    """

    def make() -> None:
        d, file = recipe.data, folder / "manifest.json"
        pieces = pieces_of(corpus, column=d.column, streaming=d.streaming)  # before the tokenizer: a wrong path is said first
        tokenizer = load_tokenizer(tokenizer_folder)
        asked = {"corpus": described(corpus, pieces), "mode": d.mode, "sequence_length": d.sequence_length, "seed": recipe.training.seed,
                 "heldout_fraction": d.heldout_fraction if heldout_fraction is None else heldout_fraction,
                 "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer)}  # fmt: skip
        made = json.loads(file.read_text()) if file.is_file() else None
        changed = {key: f"was {made.get(key)}, is {value}" for key, value in asked.items() if made.get(key) != value} if made else {}
        if made and not changed:
            return
        if made and bound and (bound / "run.json").is_file():
            names = {"corpus": "--corpus", "seed": "training.seed", "tokenizer_fingerprint": "the tokenizer"}
            detail = "; ".join(f"{names.get(key, 'data.' + key)} {how}" for key, how in changed.items())
            raise UserError(f"{bound} holds another run ({detail}): choose another --output")
        prepare_tokens(corpus, tokenizer, folder, recipe, heldout_fraction)

    on_first_rank(make)
    check_shared(folder / "manifest.json")
    return folder


def heldout_sets(files: list[str], tokens: Path, recipe: Recipe, output: Path) -> dict[str, Path]:
    """Collective: further held-out texts, tokens of each under output/heldout, by the name of its file."""
    sets: dict[str, Path] = {}
    for file in files:
        name = Path(file.rstrip("/")).name.split(".")[0] or "text"
        name = name if name not in sets else f"{name}_{len(sets)}"
        sets[name] = tokens_for([file], str(tokens / "tokenizer"), recipe, output / "heldout" / name, heldout_fraction=1.0)
    return sets


def with_tokens(recipe: Recipe, tokens: Path) -> Recipe:
    """The recipe as the prepared folder has it: mode and sequence length were decided there."""
    manifest = TokenStore.open(tokens, "train").manifest
    recipe, d = copy.deepcopy(recipe), recipe.data
    for key in ("mode", "sequence_length"):
        if getattr(d, key) != manifest[key]:
            say(f"data.{key} is {manifest[key]}, as {tokens} was prepared, not {getattr(d, key)}")
            setattr(recipe.data, key, manifest[key])
    return recipe


def masker_of(store: TokenStore, recipe: Recipe) -> Masker:
    m, d = store.manifest, recipe.data
    continues = continuing_pieces(load_tokenizer(store.path / "tokenizer")) if d.whole_word_masking else None
    return Masker(store.token_counts, m["special_ids"], m["mask_id"], m["vocab_size"], recipe.training.seed, d.mask_probability,
                  d.mask_smoothing, continues)  # fmt: skip


def heldout_part(tokens: Path) -> TokenStore:
    """The held-out part of a prepared folder. UserError where it is empty."""
    part = TokenStore.open(tokens, "heldout")
    if not len(part):
        raise UserError(f"{tokens}: no held-out text; give a data.heldout_fraction above 0, and more than one document")
    return part


def stores_of(tokens: Path, recipe: Recipe, rank: int, world: int, more: dict[str, Path]):
    """(the training part, its order, what makes the batches of each held-out set)."""
    store = TokenStore.open(tokens, "train")
    found = from_every_rank(store.manifest["fingerprint"])
    other = next((number for number, fingerprint in enumerate(found) if fingerprint != found[0]), None)
    if other is not None:
        raise UserError(f"{tokens}: rank {other} has other tokens there than the first; copy that folder from the first rank's host")
    masker = masker_of(store, recipe)
    t, d = recipe.training, recipe.data
    own = not d.attend_across_documents
    order = BatchOrder(store, masker, seed=t.seed, global_batch=t.global_batch, micro_batch=t.micro_batch, rank=rank, world_size=world,
                       weights=d.weights, by_length=store.manifest["mode"] == "grouped", own_documents=own)  # fmt: skip
    sets = {name: heldout_part(path) for name, path in {"": tokens, **more}.items()}
    heldout = {name: partial(heldout_batches, part, masker, t.micro_batch, t.heldout_blocks, own) for name, part in sets.items()}
    return store, order, heldout
