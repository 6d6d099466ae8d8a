"""The tokens that a run reads.

The run's first rank prepares them once; they are bound to the run and opened in the run's order.
"""

import contextlib
import copy
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

from ds_distill.data.accounting import TRACE
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.loader import BatchLoader, heldout_batches
from ds_distill.data.masking import Masker, masked_count
from ds_distill.data.prepare import Preparation
from ds_distill.data.sources import WorkUnit, corpus_identity, split_inputs
from ds_distill.data.token_files import FORMAT, format_of, open_manifest
from ds_distill.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from ds_distill.data.waiting_ranks import check_waiting_ranks, corpus_bytes
from ds_distill.data.words import find_words
from ds_distill.distributed.launch_environment import world_size
from ds_distill.distributed.process_group import all_gather_object, run_on_rank0
from ds_distill.recipe import Recipe
from ds_distill.run_folder import RunFolder, check_shared
from ds_distill.utils.console import log, log_once_per_process, progress
from ds_distill.utils.errors import UserError


def default_recipe(positions: int) -> Recipe:
    """Return the recipe with which a text is read where none is given: the defaults, cut to a model's positions.

    Args:
        positions: How many tokens the model reads at most.
    """
    recipe = Recipe()
    recipe.data.sequence_length = min(recipe.data.sequence_length, positions)
    return recipe


def text_fingerprint(corpus: list[str], tokens: str | Path | None) -> str:
    """Return what a text has in the identity of a run: the beginning of its fingerprint, 16 hex digits.

    Args:
        corpus: The text.
        tokens: A folder of prepared tokens instead, whose fingerprint tells their settings too.
    """
    whole = open_manifest(Path(tokens))["fingerprint"] if tokens else content_fingerprint(split_inputs(corpus))
    return whole[:16]


def preparation_of(
    inputs: list[str], tokenizer, folder: Path, recipe: Recipe, heldout_fraction: float | None = None
) -> Preparation:
    """Return the preparation of a corpus with the recipe's settings; nothing is done yet."""
    data = recipe.data
    return Preparation(
        inputs,
        tokenizer,
        folder,
        mode=data.mode,
        sequence_length=data.sequence_length,
        seed=recipe.training.seed,
        heldout_fraction=data.heldout_fraction if heldout_fraction is None else heldout_fraction,
        column=data.column,
        streaming=data.streaming,
        drop_duplicates=data.drop_duplicates,
    )


def prepare_tokens(
    inputs: list[str], tokenizer, folder: Path, recipe: Recipe, heldout_fraction: float | None = None
) -> dict:
    """Prepare a corpus with the recipe's settings, log what was lost, and return the manifest."""
    preparation = preparation_of(inputs, tokenizer, folder, recipe, heldout_fraction)
    with bytes_bar() as show:
        manifest = preparation.run(recipe.data.workers, show)
    log_remarks(manifest)
    return manifest


@contextlib.contextmanager
def bytes_bar() -> Iterator[Callable[[int, int], None]]:
    """Show a bar, and yield what moves it: a function of the bytes read and the total bytes."""
    with progress(None, "tokens", "B") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        yield show


def log_remarks(manifest: dict) -> None:
    """Log what a manifest has to tell of the text, such as what was lost."""
    for remark in manifest["remarks"]:
        log(remark)


def text_statistics(tokens: Path) -> dict:
    """Return what a run's summary tells of its text.

    That is what became of every character, and the findings in its documents.
    """
    manifest = open_manifest(tokens)
    return {key: manifest[key] for key in ("characters", "found") if key in manifest}


def prepare_run_tokens(
    corpus: list[str],
    tokenizer_folder: str,
    recipe: Recipe,
    folder: Path,
    heldout_fraction: float | None = None,
    bound: Path | None = None,
    option: str = "--corpus",
) -> Path:
    """Collective: prepare the tokens of `corpus` in `folder` and return that folder.

    The first rank makes them, unless they are there already: of the same text, wherever it lies,
    and prepared in the same way.

    Args:
        bound: Folder of the run that the tokens are for. Once that run has begun, other text is a
            UserError.
        option: The option that gave `corpus`.
    """

    hosts = all_gather_object(socket.gethostname()) if world_size() > 1 else [""]

    def make() -> None:
        data = recipe.data
        # This comes before the tokenizer, so that a wrong path is reported first.
        pieces = split_inputs(corpus, column=data.column, streaming=data.streaming)
        tokenizer = load_tokenizer(tokenizer_folder)
        if (folder / "manifest.json").is_file():
            changed, other = _differences(folder, corpus, tokenizer, recipe, heldout_fraction)
            if not changed and not other:
                return
            if bound and RunFolder(bound).identity.is_file():
                remedy = "choose another --output"
                if other and not changed and option == "--corpus":
                    remedy += f", or resume with the text of that run: --tokens {folder} instead of --corpus"
                differences = "; ".join([f"{option} {other}"] * bool(other) + changed)
                raise UserError(f"{bound} holds another run ({differences}): {remedy}")
        size = corpus_bytes(pieces)
        check_waiting_ranks(corpus, size, len(set(hosts)), len(hosts), tokenizer_folder, recipe, option)
        prepare_tokens(corpus, tokenizer, folder, recipe, heldout_fraction)

    run_on_rank0(make)
    check_shared(folder / "manifest.json")
    return folder


def is_prepared(folder: Path, corpus: list[str], tokenizer, recipe: Recipe) -> bool:
    """Return whether a folder holds the tokens of this text, prepared with this tokenizer and these settings."""
    return (folder / "manifest.json").is_file() and not any(_differences(folder, corpus, tokenizer, recipe))


def _differences(
    folder: Path, corpus: list[str], tokenizer, recipe: Recipe, heldout_fraction: float | None = None
) -> tuple[list[str], str | None]:
    """Return in words how the settings, and how the text, differ from those of prepared data."""
    data, manifest = recipe.data, open_manifest(folder, oldest=0)
    pieces = split_inputs(corpus, column=data.column, streaming=data.streaming)
    settings = {
        "mode": data.mode,
        "sequence_length": data.sequence_length,
        "seed": recipe.training.seed,
        "heldout_fraction": data.heldout_fraction if heldout_fraction is None else heldout_fraction,
        "drop_duplicates": data.drop_duplicates,
        "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
    }
    manifest.setdefault("drop_duplicates", False)  # Earlier versions dropped none.
    names = {"seed": "training.seed", "tokenizer_fingerprint": "the tokenizer"}
    changed = [
        f"{names.get(key, f'data.{key}')} was {manifest.get(key)}, is {value}"
        for key, value in settings.items()
        if manifest.get(key) != value
    ]
    if (earlier := format_of(manifest)) != FORMAT:
        changed.append(f"the format of its token files was {earlier}, is {FORMAT}")
    return changed, _describe_text_change(manifest, corpus, pieces)


def _describe_text_change(manifest: dict, corpus: list[str], pieces: list[WorkUnit]) -> str | None:
    """Return in words how a corpus differs from that of prepared data; None where it is the same."""
    before: Any = manifest.get("corpus")
    now = corpus_identity(corpus, pieces)
    if "content" not in manifest:  # Earlier versions prepared the data like this.
        return None if before == now else f"was {before}, is {now}"
    if manifest["content"] == content_fingerprint(pieces):
        return None
    same_size = [entry[1:] for entry in before] == [entry[1:] for entry in now]
    return (
        f"{', '.join(corpus)}: the text has changed, although its size is the same"
        if same_size
        else f"was {before}, is {now}"
    )


def with_prepared_settings(recipe: Recipe, tokens: Path) -> Recipe:
    """Return the recipe with the prepared folder's mode, sequence length and share of held-out documents.

    They were decided when the folder was prepared, and a run's records and model card tell them.
    """
    manifest = open_manifest(tokens)
    recipe, data = copy.deepcopy(recipe), recipe.data
    for key in ("mode", "sequence_length", "heldout_fraction", "drop_duplicates"):
        value = getattr(data, key)
        if (prepared := manifest.get(key, value)) != value:
            log_once_per_process(f"data.{key} = {value}: ignored, because {tokens} was prepared with {prepared}")
            setattr(recipe.data, key, prepared)
    return recipe


def make_masker(store: TokenDataset, recipe: Recipe) -> Masker:
    """Return the masker that the recipe asks for, with the token counts of `store`."""
    manifest, data = store.manifest, recipe.data
    words = find_words(load_tokenizer(store.path / "tokenizer")) if data.whole_word_masking else None
    if words is not None and not words.is_marked:
        log(
            f"data.whole_word_masking: the tokenizer of {store.path} does not mark where words begin, so each token is "
            "masked independently"
        )
    masker = Masker(
        store.token_counts,
        manifest["special_ids"],
        manifest["mask_id"],
        manifest["vocab_size"],
        recipe.training.seed,
        data.mlm_probability,
        data.mlm_smoothing,
        words,
    )
    _check_masked(store, masker)
    return masker


def _check_masked(store: TokenDataset, masker: Masker) -> None:
    """Raise UserError where no sequence has a token masked, and log where some have none.

    Those are too short for data.mlm_probability.
    """
    sequences = {
        int(tokens): count for tokens, count in store.manifest.get("maskable", {}).get(store.split, {}).items()
    }
    never = [tokens for tokens in sequences if not masked_count(tokens, masker.probability)]
    if not never:
        return
    total, count = sum(sequences.values()), sum(sequences[tokens] for tokens in never)
    which = f"data.mlm_probability = {masker.probability}: of the {total:,} {store.split} sequences of {store.path}"
    if store.split == "train" and count == total:
        raise UserError(
            f"{which}, none has a token masked, because none has more than {max(never)} tokens; raise it, or prepare "
            "longer text"
        )
    if count > TRACE * total:
        log(f"{which}, {count:,} have no token masked: those of {max(never)} tokens or fewer")


def open_heldout(
    tokens: Path, remedy: str = "set data.heldout_fraction above 0, and give more than one document"
) -> TokenDataset:
    """Return the held-out part of a prepared folder.

    Args:
        tokens: The folder.
        remedy: What to do where it has none, for errors.

    Raises:
        UserError: If it is empty.
    """
    part = TokenDataset.open(tokens, "heldout")
    if not len(part):
        raise UserError(f"{tokens}: no held-out text; {remedy}")
    return part


def open_run_data(tokens: Path, recipe: Recipe, rank: int, world: int, heldout_folders: dict[str, Path]):
    """Collective: open the prepared data in the run's order.

    Returns:
        (The training part, its order, and for each held-out set a function that makes its batches).

    Raises:
        UserError: If a rank has other tokens than the first.
    """
    store = TokenDataset.open(tokens, "train")
    fingerprints = all_gather_object(store.manifest["fingerprint"])
    other = next((number for number, fingerprint in enumerate(fingerprints) if fingerprint != fingerprints[0]), None)
    if other is not None:
        raise UserError(
            f"{tokens}: rank {other} has different tokens there than rank 0; copy that folder from the host of rank 0"
        )
    masker = make_masker(store, recipe)
    training, data = recipe.training, recipe.data
    document_masking = not data.attend_across_documents
    micro_batch_size = cast(int, training.micro_batch_size)  # "auto" has been decided.
    order = BatchLoader(
        store,
        masker,
        seed=training.seed,
        global_batch_size=training.global_batch_size,
        micro_batch_size=micro_batch_size,
        rank=rank,
        world_size=world,
        weights=data.weights,
        by_length=store.manifest["mode"] == "lines",
        document_masking=document_masking,
        clean_fraction=data.clean_fraction,
    )
    sets = {name: open_heldout(path) for name, path in {"": tokens, **heldout_folders}.items()}
    for part in sets.values():
        _check_masked(part, masker)
    heldout = {
        name: partial(
            heldout_batches,
            part,
            masker,
            micro_batch_size,
            training.eval_max_sequences,
            document_masking,
            rank,
            world,
        )
        for name, part in sets.items()
    }
    return store, order, heldout
