"""Word boundaries that the pieces of a vocabulary reveal, for every kind of tokenizer and script.

A word is a run of letters and digits between white space, and each mark (punctuation, symbol,
emoji) is a word of its own, as in BERT's own splitting. So "(don't" is four words under every
tokenizer: ( don ' t. Scripts that put no space between words (Chinese, Japanese, Thai, Lao, Khmer,
Burmese, Tibetan …) reveal no words without a dictionary. There, a piece of the vocabulary counts as
a word, but no piece begins one inside a character. For BERT in Chinese, where a piece is a
character, whole-word masking is therefore plain masking.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata

import numpy as np
from transformers import PreTrainedTokenizerFast

from ds_distill.data.tokenizer import vocabulary_size
from ds_distill.data.whole_words import CLOSES, INHERITS, INSIDE, JOINS, OPENS, SPACED, UNFINISHED, Words

_UNSPACED = (
    (0x0E00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19DF),
    (0x1A20, 0x1AAF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x3029),
    (0x3031, 0x3035),
    (0x3038, 0x303B),
    (0x3040, 0x312F),
    (0x31A0, 0x31BF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA980, 0xA9DF),
    (0xA9E0, 0xA9FF),
    (0xAA60, 0xAADF),
    (0xF900, 0xFAFF),
    (0xFF66, 0xFF9F),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)


def find_words(tokenizer: PreTrainedTokenizerFast) -> Words:
    """Return where a tokenizer's words begin.

    This follows from ## (WordPiece), ▁ (SentencePiece), Ġ (byte-level) or </w>, and from the
    characters of the pieces.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model, around = (
        state["model"],
        json.dumps([state[key] for key in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False),
    )
    names = tokenizer.convert_ids_to_tokens(list(range(vocabulary_size(tokenizer))))
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    byte_level, spaced = '"ByteLevel"' in around, "▁" in around
    if model["type"] == "WordLevel" or not (byte_level or spaced or prefix or suffix):
        return Words(np.full(len(names), SPACED, np.uint8), is_marked=model["type"] == "WordLevel")
    table = _letters_to_bytes() if byte_level else {}
    bits, spelled = np.zeros(len(names), np.uint8), []
    for number, name in enumerate(names):
        name = name or ""
        if byte_level:
            data = bytes(table.get(letter, 0x20) for letter in name)
        elif model.get("byte_fallback") and (byte := re.fullmatch("<0x([0-9A-F]{2})>", name)):
            data = bytes.fromhex(byte[1])
        else:
            data = name.removeprefix(prefix).removesuffix(suffix).replace("▁", " " if spaced else "▁").encode()
        spelled.append(data)
        bits[number] = _get_bits(data)
        if prefix and not name.startswith(prefix):
            bits[number] |= SPACED
        if suffix and name.endswith(suffix):
            bits[number] |= CLOSES
        # Only a space belongs to the text that follows; further white space forms pieces of its own
        # there.
        if byte_level and not data.strip():
            bits[number] = SPACED | (JOINS if data.endswith(b" ") else CLOSES)

    @functools.lru_cache(1 << 16)
    def get_joined_bits(ids: tuple[int, ...]) -> int:
        return _get_bits(_first_characters([spelled[number] for number in ids]))

    return Words(bits, get_joined_bits=get_joined_bits)


def _first_characters(pieces: list[bytes]) -> bytes:
    """Return the bytes of pieces up to the end of the last character that begins in the first of them."""
    rest = b"".join(pieces[1:])
    return pieces[0] + rest[: len(rest) - len(rest.lstrip(bytes(range(0x80, 0xC0))))]


def _get_bits(data: bytes) -> int:
    """Return the bits that describe a piece, given its bytes with any white space that precedes it."""
    body = data.lstrip()
    bits = SPACED if len(body) < len(data) else 0
    if not body:
        return bits | JOINS
    leads = [place for place, byte in enumerate(body) if not 0x80 <= byte < 0xC0]
    if not leads:
        return bits | INSIDE | INHERITS
    first, last = (_character(body[place:]) for place in (leads[0], leads[-1]))
    if leads[0] > 0 or _is_combining(first):
        bits |= INSIDE
    elif _stands_alone(first):
        bits |= OPENS
    if last == "\u200d":
        bits |= JOINS
    elif _stands_alone(last) or (_is_combining(last) and _is_unspaced(last)):
        bits |= CLOSES
    if len(body) - leads[-1] < _size(body[leads[-1]]):
        bits |= UNFINISHED
    return bits


def _character(data: bytes) -> str:
    """Return the character that bytes begin with; U+FFFD where they end inside it."""
    return data[: _size(data[0])].decode(errors="replace")[0]


def _size(lead: int) -> int:
    """Return how many bytes a character has that begins with this one."""
    return 1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


def _is_combining(character: str) -> bool:
    return (
        unicodedata.category(character).startswith("M")
        or character == "\u200d"
        or "\U0001f3fb" <= character <= "\U0001f3ff"
    )


def _stands_alone(character: str) -> bool:
    """Return whether a character is a mark, or belongs to a script without spaces."""
    return unicodedata.category(character)[0] in "PS" or _is_unspaced(character)


def _letters_to_bytes() -> dict[str, int]:
    """Return the byte that each letter of a byte-level vocabulary stands for.

    A printable byte is its own letter; the others have the next letters from U+0100 on.
    """
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + number): byte for number, byte in enumerate(others)}
