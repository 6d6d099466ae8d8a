"""From text to token ids with the tokenizers library, which encodes each distinct word once.

The module also finds the characters that no token stands for.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Set
from functools import cache
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer
from tokenizers.normalizers import BertNormalizer, Normalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from ds_distill.data.unencoded import Loss, LossFinder

# These take about 100 MB. A text has few words that are frequent and many that occur once.
REMEMBERED_WORDS = 400_000
LONG_WORD = 40  # in characters; clauses of languages without spaces do not recur
_PROBES = (
    "Plain words, again words; words!",
    "tab\tand  two spaces\nline\r\nend ",
    " leading and trailing ",
    "naïve café e\u0301 ½ ﬁ ﷺ don't",
    "U.S.A. a_b 3.14",
    "中文字 日本 ไทย",
    "ÜMLAUT İ ß zero\u200bwidth \u3000wide \u00a0space",
    "[MASK] <mask> </s>",
    "🙂🙂 emoji",
    "a b c a b",
)
_MARKS = r"!-/:-@\[-`{-~"  # the ASCII marks, for a character class
_MARK_OR_WORD = rf"[{_MARKS}]|[^\s{_MARKS}]+"
_SEPARATORS = "[\x0b\x0c\x1c-\x1f\x85]"  # These are white space to Python, but nothing to some tokenizers.
# The effect of these on a character depends on no character beyond the next white space or ASCII
# mark.
_LOCAL_NORMALIZERS = ("BertNormalizer", "Lowercase", "NFD", "NFKD", "StripAccents", "Nmt", "Strip")
# These form clusters with the character that follows.
_PREPENDED = "\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd\U000111c2\U000111c3"
_SPACES_TO_ONE = (" {2,}", " +", r"\s+", r"\s{2,}")
_DEBERTA_SPACES = r"\s{2,}|[\n\r\t]"


class Encoded(NamedTuple):
    """The encoded texts.

    Args:
        ids: uint32 [n] for each text.
        lost: int64 [texts, len(Loss)], the number of characters that no token stands for, by cause.
        special: The number of tokens left out because a text spelled out a special token.
    """

    ids: list[np.ndarray]
    lost: np.ndarray
    special: int


class Encoder:
    """An encoder of texts to token ids, without special tokens: exactly the ids of `tokenizer.encode`.

    Tokenizers of the BERT, RoBERTa and XLM-R kind split at white space before anything else, so the
    ids of a word do not depend on its neighbors, and the library encodes each distinct word once.
    Whether this holds for a tokenizer follows from its normalizer and is checked against the
    library on texts that are odd in many ways. Where it does not hold, or words were added to the
    tokenizer, the library encodes every text.

    Args:
        tokenizer: A tokenizer of the tokenizers library; it is changed to read "[MASK]" in a text
            as text.
        unknown_id: The id of a word that the vocabulary does not hold, where the model itself does
            not tell.
        special_ids: Ids that never belong to a text: `encode` leaves them out where a text can
            spell them, such as XLM-R's <s> and <mask>.
    """

    def __init__(self, tokenizer: Tokenizer, unknown_id: int | None = None, special_ids: Iterable[int] = ()):
        tokenizer.encode_special_tokens = True  # "[MASK]" in a text is plain text.
        self.tokenizer = tokenizer
        kind = str(tokenizer.pre_tokenizer)
        # Byte-level pieces begin with the space before them. BERT also splits at every ASCII mark.
        pattern = r"\s*\S+|\s+" if "ByteLevel" in kind else _MARK_OR_WORD if "BertPreTokenizer" in kind else r"\S+"
        self._split = re.compile(pattern).findall
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
        odd = _odd_texts(tokenizer.normalizer, splits_at_marks=pattern == _MARK_OR_WORD)
        self._is_odd = re.compile(odd or _SEPARATORS).search
        self._with_notes = _without_notes
        self._words = _WordCache(tokenizer, _without_notes)
        probes = list(_PROBES)
        self.caches_words = (
            odd is not None and not added and all(map(np.array_equal, self._by_text(probes), self._by_word(probes)))
        )
        spelled = (
            i
            for i in special_ids
            if i in tokenizer.encode(tokenizer.id_to_token(i) or "", add_special_tokens=False).ids
        )
        self._losses = LossFinder(tokenizer, unknown_id, frozenset(spelled))
        self._with_notes = self._losses.with_notes
        self._words = _WordCache(tokenizer, self._with_notes, self._losses.special | {self._losses.unknown_id})

    @property
    def examples(self) -> dict[str, str]:
        """The first example of each cause of a loss."""
        return self._losses.examples

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Return the ids of each text: uint32 [n]."""
        return self.encode(texts).ids

    def encode(self, texts: list[str]) -> Encoded:
        """Return the ids of each text, and the characters that were lost."""
        parts = self._noted(texts)
        lost = np.zeros((len(texts), len(Loss)), np.int64)
        codes = np.concatenate(parts) if parts else np.empty(0, np.uint32)
        places = np.flatnonzero(LossFinder.is_note(codes))
        if not len(places):
            return Encoded(parts, lost, 0)
        ends = np.cumsum([len(part) for part in parts])
        notes, owners = LossFinder.read(codes[places]), np.searchsorted(ends, places, side="right")
        np.add.at(lost, (owners, notes.cause), notes.characters)
        kept = np.ones(len(codes), bool)
        kept[places] = notes.is_token
        codes[places] = self._losses.unknown_id or 0
        for owner in set(owners.tolist()):
            span = slice(ends[owner] - len(parts[owner]), ends[owner])
            parts[owner] = codes[span][kept[span]]
        return Encoded(parts, lost, int((notes.cause == Loss.SPECIAL_TOKENS).sum()))

    def _noted(self, texts: list[str]) -> list[np.ndarray]:
        if not self.caches_words:
            return self._by_text(texts)
        odd = [i for i, text in enumerate(texts) if self._is_odd(text)]
        encoded = self._by_word(texts)
        for i, ids in zip(odd, self._by_text([texts[i] for i in odd]), strict=True):
            encoded[i] = ids
        return encoded

    def _by_text(self, texts: list[str]) -> list[np.ndarray]:
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            np.frombuffer(self._with_notes(text, encoding.ids, None), np.uint32)
            for text, encoding in zip(texts, encodings, strict=True)
        ]

    def _by_word(self, texts: list[str]) -> list[np.ndarray]:
        if len(self._words) > REMEMBERED_WORDS:
            self._words.clear()
        return [np.frombuffer(b"".join(map(self._words.__getitem__, self._split(text))), np.uint32) for text in texts]


class _WordCache(dict):
    """A map from each word to its ids, with notes, as uint32 bytes.

    A new word is encoded when it is first needed. `noted` holds the ids that come with a note.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        with_notes: Callable[[str, list[int], Encoding | None], array],
        noted: Set[int | None] = frozenset(),
    ):
        self.encode, self.model, self.with_notes, self.noted = tokenizer.encode, tokenizer.model, with_notes, noted
        # BERT's normalizer only lowercases ASCII letters and digits and does not split them:
        # skipping it is four times faster.
        self.bert = isinstance(tokenizer.pre_tokenizer, BertPreTokenizer) and isinstance(
            tokenizer.normalizer, BertNormalizer
        )
        self.lowers = self.bert and tokenizer.normalizer.lowercase

    def __missing__(self, word: str) -> bytes:
        if not (self.bert and word.isascii() and word.isalnum()):
            encoding = self.encode(word, add_special_tokens=False)
            ids = self.with_notes(word, encoding.ids, encoding).tobytes()
        elif self.lowers and (lower := word.lower()) != word:
            ids = self[lower]
        else:  # The normalizer removes nothing from such a word.
            token_ids = [token.id for token in self.model.tokenize(word)]
            ids = (
                array("I", token_ids) if self.noted.isdisjoint(token_ids) else self.with_notes(word, token_ids, None)
            ).tobytes()
        if len(word) <= LONG_WORD:
            self[word] = ids
        return ids


def _without_notes(text: str, ids: list[int], encoding: Encoding | None) -> array:
    return array("I", ids)


def _odd_texts(normalizer: Normalizer | None, *, splits_at_marks: bool) -> str | None:
    """Return a pattern of the texts that the library must see whole.

    It is None where the effect of the normalizer on a word may depend on the word's neighbors.
    `splits_at_marks` tells whether a word ends at every ASCII mark, not only at white space.
    """
    state = json.loads(normalizer.__getstate__()) if normalizer is not None else {"type": "Sequence", "normalizers": []}
    patterns = [_SEPARATORS]
    for step in state.get("normalizers", [state]):
        kind = step["type"]
        if kind in ("NFC", "NFKC"):
            # These are the only ASCII marks that compose; white space never does.
            patterns += ["[<=>]\u0338"] if splits_at_marks else []
        elif kind == "Precompiled":
            # This normalizer sees grapheme clusters.
            patterns.append(f"[{_MARKS if splits_at_marks else ''}\\s][{_extending()}]|[{_PREPENDED}]")
        elif kind == "Replace":
            pattern = step["pattern"]
            if pattern.get("Regex") == _DEBERTA_SPACES:
                patterns.append(r"[^\S \n\r\t]")  # one of these alone stays as it is, within a word
                continue
            whole = pattern.get("String", " ")
            if pattern.get("Regex") not in _SPACES_TO_ONE and (
                re.search(r"\s", whole) or (splits_at_marks and len(whole) > 1)
            ):
                return None
        elif kind not in _LOCAL_NORMALIZERS:
            return None
    return "|".join(patterns)


@cache
def _extending() -> str:
    """Return, for a character class, the characters that continue a grapheme cluster after a space or a mark."""
    marks = (
        chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) in ("Mn", "Mc", "Me", "Cf")
    )
    return "".join(marks) + "\u1160-\u11ff\ud7b0-\ud7ff\uff9e\uff9f\U0001f3fb-\U0001f3ff"
