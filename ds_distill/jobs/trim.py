"""The job that gives a model and its tokenizer a smaller vocabulary: the tokens of a text."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ds_distill.compression.card import trimmed_card
from ds_distill.compression.trim_model import trim_model
from ds_distill.compression.trim_tokenizer import check_kind, trim_tokenizer
from ds_distill.data.dataset import TokenDataset
from ds_distill.data.run_data import default_recipe, is_prepared, prepare_tokens, text_fingerprint
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.exporters.sentence_embedding import write_sentence_transformers_files
from ds_distill.models.families import get_family
from ds_distill.models.folder import ModelFolder, find_model_folder
from ds_distill.models.loader_text import loader_code
from ds_distill.models.loading import load_encoder
from ds_distill.models.low_rank import count_with_factors, set_rank
from ds_distill.models.saving import save_model_folder
from ds_distill.models.sentence_modules import is_embedder
from ds_distill.models.teacher import weights_fingerprint
from ds_distill.models.tokenizer_fit import check_vocabulary
from ds_distill.preflight.models import check_fits_prepared_tokens, report_lost_head
from ds_distill.reporting import provenance
from ds_distill.run_folder import RunFolder, locked_run_folder_alone, read_finished
from ds_distill.run_record import write_record
from ds_distill.utils.console import log_header, progress_over, spinner
from ds_distill.utils.errors import UserError
from ds_distill.utils.resources import explain_disk_full


def trim(
    model: str, output: Path, *, corpus: Sequence[str] = (), tokens: str | None = None, min_count: int = 1
) -> dict:
    """Write output/export, a model whose vocabulary has the tokens of a text alone, and return the summary.

    Args:
        model: The folder, or name on the Hub, of a masked-LM model or an encoder, with its tokenizer.
        output: The folder to write.
        corpus: The text.
        tokens: A folder of prepared tokens instead.
        min_count: How often a token must occur in the text to be kept.

    Raises:
        UserError: The tokenizer is of another kind, or does not belong to the model, or the text has no tokens.
    """
    folder = find_model_folder(model, "--model")
    content = json.loads(folder.tokenizer.backend_tokenizer.to_str())
    check_kind(content, folder.given)
    check_vocabulary(folder.tokenizer, folder.config, folder.given)
    whole = load_encoder(folder)
    text = text_fingerprint(list(corpus), tokens)
    identity = {"model": weights_fingerprint(whole)[:16], "text": text, "min_count": min_count}
    export = RunFolder(output).export
    with locked_run_folder_alone(output, identity, remedy="remove it, or choose another --output"):
        if finished := read_finished(output, export / "config.json", export=export):
            return finished
        report_lost_head(folder, whole)
        counts = _count(folder, output, list(corpus), tokens)
        vocabulary = folder.tokenizer.get_vocab()
        wanted = [token for token, number in vocabulary.items() if counts[number] >= min_count]
        trimmed, former = trim_tokenizer(content, wanted)
        before = count_with_factors(whole, folder.linear_rank)
        trim_model(whole, former)
        figures = {
            "tokens": len(former),
            "tokens_before": len(vocabulary),
            "parameters": count_with_factors(whole, folder.linear_rank),
            "parameters_before": before,
            "text_tokens": int(counts.sum()),
            "text_tokens_dropped": int(counts.sum() - counts[former].sum()),
        }
        log_header(
            {
                "model": f"{folder.title}, {before / 1e6:.1f} M parameters",
                "text": f"{figures['text_tokens']:,} tokens",
                "output": str(output),
            }
        )
        with explain_disk_full(output), spinner("writing the model"):
            set_rank(whole.config, folder.linear_rank)  # The layers stay as they are.
            tokenizer = _load_trimmed(folder, trimmed)
            save_model_folder(whole, tokenizer, export)
            if is_embedder(folder.path):
                write_sentence_transformers_files(folder.path, whole.config, tokenizer.model_max_length, export)
            family = get_family(whole)
            card = trimmed_card(
                figures,
                min_count,
                provenance.from_model(folder.path),
                head=family.has_head(whole),
                pooler=family.has_pooler,
                loader=loader_code(whole),
                rank=folder.linear_rank,
            )
            (export / "README.md").write_text(card, encoding="utf-8")
        write_record(output)
        return figures | {"export": str(export), "output": str(output)}


def _count(folder: ModelFolder, output: Path, corpus: list[str], tokens: str | None) -> np.ndarray:
    """Return how often each token occurs in the text, int64 [V]."""
    place = Path(tokens or RunFolder(output).tokens)
    recipe = default_recipe(folder.positions)
    recipe.data.heldout_fraction = 0.0  # every text counts
    if not tokens and not is_prepared(place, corpus, folder.tokenizer, recipe):
        prepare_tokens(corpus, folder.tokenizer, place, recipe)
    store = TokenDataset.open(place, "train")
    check_fits_prepared_tokens(store, folder)
    counts = store.token_counts + _count_heldout(TokenDataset.open(place, "heldout"))
    if not counts.sum():
        raise UserError(f"{place}: the text has no tokens; give text with --corpus")
    return counts


def _count_heldout(store: TokenDataset) -> np.ndarray:
    """Return how often each token occurs in the held-out part of a text, int64 [V], which the folder does not say."""
    counts = np.zeros_like(store.token_counts)
    for first in progress_over(range(0, len(store), 1024), "counting the held-out tokens"):
        rows = [store.sequence(index) for index in range(first, min(first + 1024, len(store)))]
        counts += np.bincount(np.concatenate(rows), minlength=len(counts))
    return counts


def _load_trimmed(folder: ModelFolder, content: dict):
    """Return a model's tokenizer with another content of tokenizer.json."""
    with tempfile.TemporaryDirectory() as scratch:
        folder.tokenizer.save_pretrained(scratch)
        for name in ("vocab.txt", "vocab.json", "merges.txt", "added_tokens.json"):  # they hold the former ids
            (Path(scratch) / name).unlink(missing_ok=True)
        file = Path(scratch) / "tokenizer_config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)
        file.write_text(json.dumps(settings), encoding="utf-8")
        (Path(scratch) / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        return load_tokenizer(scratch)
