"""Characters of a text that no token stands for, and the causes, found where a text is encoded."""

from __future__ import annotations

import json
import sys
from array import array
from enum import IntEnum
from typing import NamedTuple, cast

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel


class Loss(IntEnum):
    """The cause why a character is in no token."""

    NOT_UTF8 = 0  # U+FFFD, which stands for bytes that are not UTF-8, replaced here or by an earlier program
    UNKNOWN = 1  # in a word or character that the vocabulary does not hold
    TOO_LONG = 2  # in a word longer than a WordPiece model takes
    REMOVED = 3  # removed by the tokenizer's normalizer: control characters, accents
    SPECIAL_TOKENS = 4  # spells a special token, such as XLM-R's <s>


class Notes(NamedTuple):
    """The content of notes.

    Args:
        cause: int64 [n].
        characters: int64 [n], how many were lost.
        is_token: bool [n], whether a token, the unknown one, stands there.
    """

    cause: np.ndarray
    characters: np.ndarray
    is_token: np.ndarray


# A note stands among a text's ids. It has the top bit, which no id has, three bits of cause and one
# for is_token; the rest is the count. In this way the losses of a word are remembered with its ids,
# and a text without losses costs nothing.
_NOTE, _CAUSE, _TOKEN = 31, 28, 27
_COUNT = (1 << _TOKEN) - 1
_KEPT, _REMOVED, _BAD = 1, 2, 3
_SHORT = 64  # characters
_PRE_TOKENIZERS = (
    "BertPreTokenizer",
    "ByteLevel",
    "Digits",
    "FixedLength",
    "Metaspace",
    "UnicodeScripts",
    "Whitespace",
    "WhitespaceSplit",
)


class LossFinder:
    """A finder of the characters of a text that a tokenizer loses.

    Each character is lost to one cause at most, and white space to none.

    Args:
        tokenizer: A tokenizer of the tokenizers library.
        unknown_id: The id of its unknown token, where its model does not tell.
        special: Ids to leave out with a note.
    """

    def __init__(self, tokenizer: Tokenizer, unknown_id: int | None, special: frozenset[int]):
        model_token = getattr(tokenizer.model, "unk_token", None)
        model_id = tokenizer.token_to_id(model_token) if model_token is not None else None
        self.unknown_id = unknown_id if model_id is None else model_id
        self.special = special - {self.unknown_id}
        self.examples: dict[str, str] = {}  # the first example of each cause
        self._tokenizer = tokenizer
        self._limit = getattr(tokenizer.model, "max_input_chars_per_word", None)
        self._normalize = tokenizer.normalizer.normalize_str if tokenizer.normalizer is not None else lambda text: text
        self._drops = _drops_without_a_trace(tokenizer)
        # These are known for the characters seen so far, since normalizers are many and characters
        # few.
        self._kinds = np.zeros(sys.maxunicode + 1, np.uint8)  # _KEPT, _REMOVED or _BAD
        self._kept: set[str] = set()
        self._uncounted: set[str] = set()  # white space and all characters that are not kept

    @staticmethod
    def is_note(codes: np.ndarray) -> np.ndarray:
        """Return bool [n], true where an array of ids and notes, uint32 [n], holds a note."""
        return codes.view(np.int32) < 0

    @staticmethod
    def read(notes: np.ndarray) -> Notes:
        """Return the content of the notes, uint32 [n]."""
        wide = notes.astype(np.int64)
        return Notes(wide >> _CAUSE & 7, wide & _COUNT, (wide >> _TOKEN & 1).astype(bool))

    def with_notes(self, text: str, ids: list[int], encoding: Encoding | None) -> array:
        """Return a text's ids, as the tokenizer gives them, with a note for every loss: uint32 [n].

        `encoding` is the one that the ids come from, if it has offsets.
        """
        notes = [] if len(text) < _SHORT and self._kept.issuperset(text) else self._notes_on(text)
        if self._drops or self.unknown_id in ids or (self.special and not self.special.isdisjoint(ids)):
            ids = self._by_offsets(text, ids, encoding or self._tokenizer.encode(text, add_special_tokens=False))
        return array("I", [*ids, *notes] if notes else ids)

    def _notes_on(self, text: str) -> list[int]:
        """Return notes on the characters that no tokenizer can use, and on those that the normalizer removes."""
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        kinds = self._kinds[codes]
        if not kinds.all():
            for character in {chr(code) for code in codes[kinds == 0]}:
                self._classify(character)
            kinds = self._kinds[codes]
        counts = {
            cause: int(np.count_nonzero(kinds == kind))
            for kind, cause in ((_BAD, Loss.NOT_UTF8), (_REMOVED, Loss.REMOVED))
        }
        return [_note(cause, count) for cause, count in counts.items() if count]

    def _classify(self, character: str) -> None:
        kind = _KEPT
        if character == "\ufffd":
            kind = _BAD
        elif not character.isspace() and self._normalize(f"a{character}a") == self._normalize("aa"):
            kind = _REMOVED
            self.examples.setdefault("removed", f"U+{ord(character):04X}")
        self._kinds[ord(character)] = kind
        if kind == _KEPT:
            self._kept.add(character)
        if kind != _KEPT or character.isspace():
            self._uncounted.add(character)

    def _by_offsets(self, text: str, ids: list[int], encoding: Encoding) -> list[int]:
        if self._drops:
            return self._by_gaps(text, encoding)
        codes, lost = list(ids), 0
        for place, token in enumerate(ids):
            if token == self.unknown_id or token in self.special:
                # A token of a text, unlike one that is put around it, stands for characters.
                start, stop = cast(tuple[int, int], encoding.token_to_chars(place))
                codes[place] = self._note_on(token, text[max(start, lost) : stop])
                lost = stop
        return codes

    def _by_gaps(self, text: str, encoding: Encoding) -> list[int]:
        codes, end, lost = [], 0, 0
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            codes += self._dropped(text, end, start) if start > end else []
            if token == self.unknown_id or token in self.special:
                codes.append(self._note_on(token, text[max(start, lost) : stop]))
                lost = stop
            else:
                codes.append(token)
            end = max(end, stop)
        return codes + self._dropped(text, end, len(text))

    def _note_on(self, token: int, span: str) -> int:
        """Return the note that replaces an unknown or special token.

        `span` holds the characters that the token stands for. One that it shares with a known token
        is lost too.
        """
        if token in self.special:
            return self._note(Loss.SPECIAL_TOKENS, span)
        too_long = self._limit is not None and len(self._normalize(span)) > self._limit
        return self._note(Loss.TOO_LONG if too_long else Loss.UNKNOWN, span, is_token=True)

    def _dropped(self, text: str, start: int, stop: int) -> list[int]:
        """Return a note of text[start:stop], which is in no token.

        Marks that the normalizer has composed with the character before them are left out.
        """
        base = start - 1
        while (
            0 <= base
            and start < stop
            and len(self._normalize(text[base : start + 1])) <= len(self._normalize(text[base:start]))
        ):
            start += 1
        note = self._note(Loss.UNKNOWN, text[start:stop])
        return [note] if note & _COUNT else []

    def _note(self, cause: Loss, span: str, *, is_token: bool = False) -> int:
        count = len(span) - sum(map(span.count, set(span) & self._uncounted))
        if count and "\ufffd" not in span:
            self.examples.setdefault(cause.name.lower(), span.strip()[:20])
        return _note(cause, count, is_token=is_token)


def _note(cause: Loss, characters: int, *, is_token: bool = False) -> int:
    return 1 << _NOTE | cause << _CAUSE | is_token << _TOKEN | characters


def _drops_without_a_trace(tokenizer: Tokenizer) -> bool:
    """Return whether characters may be missing from the tokens with no unknown token in their place.

    Only offsets reveal such characters.
    """
    model, state = (
        tokenizer.model,
        json.loads(tokenizer.pre_tokenizer.__getstate__()) if tokenizer.pre_tokenizer is not None else {},
    )
    steps = state.get("pretokenizers", [state] if state else [])
    if any(step["type"] not in _PRE_TOKENIZERS and step.get("behavior", "Removed") == "Removed" for step in steps):
        return True
    if type(model).__name__ != "BPE" or model.unk_token is not None:
        return False
    if model.byte_fallback:
        return any(tokenizer.token_to_id(f"<0x{byte:02X}>") is None for byte in range(256))
    return not any(step["type"] == "ByteLevel" for step in steps) or any(
        tokenizer.token_to_id(x) is None for x in ByteLevel.alphabet()
    )
