"""Text to token ids, by the tokenizers library, each distinct word once."""

from __future__ import annotations

import re

import numpy as np
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

REMEMBERED_WORDS = 400_000  # some 100 MB; text has few words that come often, and many that come once
LONG_WORD = 40  # characters; clauses of languages without spaces do not come twice
_PROBES = (
    "Plain words, again words; words!", "tab\tand  two spaces\nline\r\nend ", " leading and trailing ", "naïve café e\u0301 ½ ﬁ ﷺ don't",
    "U.S.A. a_b 3.14", "中文字 日本 ไทย", "ÜMLAUT İ ß zero\u200bwidth \u3000wide \u00a0space", "[MASK] <mask> </s>", "🙂🙂 emoji", "a b c a b",
)  # fmt: skip
_MARK_OR_WORD = r"[!-/:-@\[-`{-~]|[^\s!-/:-@\[-`{-~]+"
_SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1f\x85]")  # white space to Python, nothing to some tokenizers


class Encoder:
    """Token ids of texts, without special tokens, exactly those of `tokenizer.encode`.

    Encoders of the BERT, RoBERTa and XLM-R kind split at white space before anything else, so a word's ids do not depend on its neighbours:
    the library encodes each distinct word once. Whether that holds for this tokenizer is checked against the library on texts that are odd in
    many ways; where it does not, or words were added to the tokenizer, the library encodes every text.
    """

    def __init__(self, tokenizer: Tokenizer):
        tokenizer.encode_special_tokens = True  # "[MASK]" in a text is text
        self.tokenizer = tokenizer
        self._words = _Words(tokenizer)
        kind = str(tokenizer.pre_tokenizer)
        # byte-level pieces begin with the space before them; BERT also splits at every ASCII mark
        pattern = r"\s*\S+|\s+" if "ByteLevel" in kind else _MARK_OR_WORD if "BertPreTokenizer" in kind else r"\S+"
        self._split = re.compile(pattern).findall
        added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
        probes = list(_PROBES)
        self.remembers = not added and all(map(np.array_equal, self._by_text(probes), self._by_word(probes)))

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text: uint32 [n]."""
        if not self.remembers:
            return self._by_text(texts)
        odd = [i for i, text in enumerate(texts) if _SEPARATORS.search(text)]
        encoded = self._by_word(texts)
        for i, ids in zip(odd, self._by_text([texts[i] for i in odd]), strict=True):
            encoded[i] = ids
        return encoded

    def _by_text(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(e.ids, np.uint32) for e in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def _by_word(self, texts: list[str]) -> list[np.ndarray]:
        if len(self._words) > REMEMBERED_WORDS:
            self._words.clear()
        return [np.frombuffer(b"".join(map(self._words.__getitem__, self._split(text))), np.uint32) for text in texts]


class _Words(dict):
    """Word → its ids as uint32 bytes; a new word is encoded when it is first asked for."""

    def __init__(self, tokenizer: Tokenizer):
        self.encode, self.model = tokenizer.encode, tokenizer.model
        # BERT's normaliser does nothing to ASCII letters and digits but lower them, and does not split them: four times faster without it
        self.bert = isinstance(tokenizer.pre_tokenizer, BertPreTokenizer) and isinstance(tokenizer.normalizer, BertNormalizer)
        self.lowers = self.bert and tokenizer.normalizer.lowercase

    def __missing__(self, word: str) -> bytes:
        if not (self.bert and word.isascii() and word.isalnum()):
            ids = np.array(self.encode(word, add_special_tokens=False).ids, np.uint32).tobytes()
        elif self.lowers and (lower := word.lower()) != word:
            ids = self[lower]
        else:
            ids = np.array([token.id for token in self.model.tokenize(word)], np.uint32).tobytes()
        if len(word) <= LONG_WORD:
            self[word] = ids
        return ids
