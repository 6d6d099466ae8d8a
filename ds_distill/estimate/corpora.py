"""Sizes of well-known corpora in tokens, so that `estimate` reads no text. This module imports no torch."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ds_distill.config.values import NUMBER, parse_int
from ds_distill.utils.errors import UserError, did_you_mean, expand_user

# Bytes of English UTF-8 text per token of BERT's uncased tokenizer: 4.65 on 20.8 MB of English
# Wikipedia and 4.42 on eight books, counted on 2026-11-28.
BYTES_PER_TOKEN: Final = 4.6


class Corpus(NamedTuple):
    """A corpus of known size.

    Args:
        title: What a sentence calls it.
        tokens: Tokens of BERT's uncased tokenizer, without special tokens.
        counted: Whether somebody counted the tokens. Otherwise they follow from the bytes of text.
        source: Where the figure comes from.
        hub: The inputs of the Hub that hold it, as --corpus names them, without "hf:".
    """

    title: str
    tokens: float
    counted: bool
    source: str
    hub: tuple[str, ...] = ()


CORPORA: Final[dict[str, Corpus]] = {
    "wikipedia": Corpus(
        "English Wikipedia",
        4.3e9,
        False,
        "20.0 GB of text in the dump of 2022-03-01 (card of the data set seonglae/wikipedia_token), "
        "4.65 bytes per token",
        ("wikimedia/wikipedia:20231101.en",),
    ),
    "bookcorpus": Corpus(
        "BookCorpus",
        1.0e9,
        False,
        "4.85 GB with Arrow's offsets, which makes 4.56 GB of text (card of the data set bookcorpus), "
        "4.42 bytes per token",
        ("bookcorpus/bookcorpus", "bookcorpus"),
    ),
    "bookcorpusopen": Corpus(
        "BookCorpusOpen",
        1.5e9,
        False,
        "5.81 B tokens of it and Wikipedia of 2023-11-01 together (card of the model AntonXue/BERT-MLM: 10,784,085 "
        "packed sequences of 512 tokens are 95 %), less those of Wikipedia",
        ("lucadiliello/bookcorpusopen",),
    ),
    "openwebtext": Corpus(
        "OpenWebText",
        8.6e9,
        False,
        "39.8 GB of text (dataset_infos.json of Skylion007/openwebtext), 4.6 bytes per token; GPT-2's tokenizer makes "
        "9.04 B tokens of it (nanoGPT's data/openwebtext/readme.md)",
        ("Skylion007/openwebtext",),
    ),
    "c4": Corpus(
        "C4 (en)",
        170e9,
        False,
        "783 GB of text (Touvron et al. 2023, table 1), 4.6 bytes per token",
        ("allenai/c4:en",),
    ),
    "fineweb-edu-10bt": Corpus(
        "FineWeb-Edu sample-10BT",
        9.72e9,
        True,
        "9,720,051,144 tokens of BERT's uncased tokenizer (card of the data set Hibiki711/fw-bert-tokenized-flattened)",
        ("HuggingFaceFW/fineweb-edu:sample-10BT",),
    ),
}
_TEXT_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([MGT])B", re.IGNORECASE)
_BYTES: Final = {"M": 1e6, "G": 1e9, "T": 1e12}


class EpochSize(NamedTuple):
    """The length of an epoch.

    Args:
        title: What a sentence calls the text, or "" where only a number was given.
        tokens: Tokens per epoch.
        source: Where the number comes from.
    """

    title: str
    tokens: int
    source: str


def parse_tokens(text: str) -> EpochSize | None:
    """Return the number of tokens that `text` states (3.2e9 or 3.2B); None where it is a path.

    Raises:
        UserError: The number is no whole number above 0.
    """
    if not NUMBER.fullmatch(text.strip()) or expand_user(text).exists():
        return None
    try:
        tokens = parse_int(text)
    except ValueError as error:
        raise UserError(f"--tokens {text}: {error}; give the tokens of an epoch, such as 3.2B") from None
    if tokens < 1:
        raise UserError(f"--tokens {text}: must be above 0")
    return EpochSize("", tokens, "given")


def size_of_corpus(inputs: list[str], weights: list[float] | None = None) -> EpochSize | None:
    """Return the length of an epoch over the inputs of --corpus; None where one of them is of unknown size.

    Args:
        inputs: Known corpora, several of which may be joined by "+" (wikipedia+bookcorpus); their data
            sets on the Hub (hf:lucadiliello/bookcorpusopen); sizes of English text in bytes (16GB); or
            other inputs that `distill` takes, whose size is unknown.
        weights: How often each input is read per epoch; once by default.

    Raises:
        UserError: An input is a single word that is neither a known corpus nor an existing file.
    """
    sizes = [
        (weight, _size_of(part.strip()))
        for given, weight in zip(inputs, weights or [1.0] * len(inputs), strict=True)
        for part in (given.split("+") if _is_a_name(given) else [given])
    ]
    known = [size for _, size in sizes if size]
    if not sizes or len(known) < len(sizes):
        return None
    return EpochSize(
        " and ".join(size.title for size in known),
        round(sum(weight * size.tokens for weight, size in sizes if size)),
        "; ".join(f"{size.title}: {size.source}" for size in known),
    )


def _size_of(given: str) -> EpochSize | None:
    """Return the size of one input; None where it is unknown."""
    name, _, split = given.removeprefix("hf:").partition("#")[0].partition("@")
    if split not in ("", "train"):
        return None
    for key, corpus in CORPORA.items():
        if given.lower() == key or name.lower() in [hub.lower() for hub in corpus.hub]:
            how = "counted" if corpus.counted else "estimated"
            return EpochSize(corpus.title, round(corpus.tokens), f"{corpus.source}, {how}")
    if size := _TEXT_SIZE.fullmatch(given):
        return EpochSize(
            f"{size[1]} {size[2].upper()}B of English text",
            round(float(size[1]) * _BYTES[size[2].upper()] / BYTES_PER_TOKEN),
            f"{BYTES_PER_TOKEN} bytes per token of BERT's tokenizer, estimated",
        )
    if _is_a_name(given):
        raise UserError(
            f"--corpus {given}: no such file and not a known corpus ({', '.join(CORPORA)}); give one of these, several "
            "joined by +, the size of English text (16GB), or the number of tokens with --tokens"
            + did_you_mean(given.lower(), CORPORA, cutoff=0.6)
        )
    return None


def _is_a_name(given: str) -> bool:
    """Return whether an input names a corpus: it is neither an existing file, nor looks like a path, pattern or URL."""
    return (
        not expand_user(given).exists()
        and not any(mark in given for mark in "/\\*?[#:")
        and not re.search(r"\.[A-Za-z]\w*$", given)
    )
