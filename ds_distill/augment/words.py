"""The words of texts, and what a masked-LM model would say in place of each.

Source: Jiao et al. 2020 (TinyBERT), section 3.2 and algorithm 1. Words of several tokens, for which the paper takes
neighbors among GloVe's vectors, stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ds_distill.models.families import get_family
from ds_distill.models.inputs import pad_right
from ds_distill.models.intermediates import run_encoder
from ds_distill.utils.errors import UserError

CANDIDATES = 15  # words that a masked-LM model proposes in place of one; the paper's number
REPLACED = 0.4  # share of the words that are replaced in a copy; the paper's number
APART = 4  # Only every fourth word is masked at a time, so that the others tell what it may be.
ROWS = 64  # sequences in a batch
APOSTROPHES = "'’"
LETTER_WORDS = ("a", "i")  # The other letters of a vocabulary are initials, and pieces such as the s of "boy's".


@dataclass(frozen=True)
class Words:
    """The words of a text that can be replaced.

    Attributes:
        text: The text.
        places: (first character, character after the last one) of each word, in order.
        candidates: int [words, k], ids of tokens, likeliest first; k is CANDIDATES, or less in a small vocabulary.
    """

    text: str
    places: list[tuple[int, int]]
    candidates: np.ndarray

    def replace(self, random: np.random.Generator, spellings: Sequence[str]) -> str:
        """Return the text with a random share REPLACED of its words replaced by random candidates.

        Args:
            random: What chooses words and candidates.
            spellings: The text of each token of the vocabulary.
        """
        chosen = np.flatnonzero(random.random(len(self.places)) < REPLACED)
        picks = random.integers(0, self.candidates.shape[1], len(self.places))
        parts, end = [], 0
        for word in chosen:
            first, after = self.places[word]
            parts += [self.text[end:first], spellings[self.candidates[word, picks[word]]]]
            end = after
        return "".join([*parts, self.text[end:]])


class WordProposer:
    """Proposes words with a masked-LM model.

    Attributes:
        spellings: The text of each token of the vocabulary.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast):
        """Find the tokens of the vocabulary that are whole words.

        Args:
            model: A masked-LM model in eval mode.
            tokenizer: Its tokenizer.

        Raises:
            UserError: The vocabulary has no whole words.
        """
        self.model, self.tokenizer, self.family = model, tokenizer, get_family(model)
        self.device = next(model.parameters()).device
        size = min(len(tokenizer), model.config.vocab_size)
        self.spellings, whole = spell_tokens(tokenizer, size)
        self.k = min(CANDIDATES, int(whole.sum()) - 1)  # one of them is the word itself
        if self.k < 1:
            raise UserError("--model: its vocabulary has no whole words, so it proposes none; give another model")
        hidden = torch.ones(model.config.vocab_size, dtype=torch.bool)
        hidden[:size] = ~torch.from_numpy(whole)
        self._hidden = hidden.to(self.device)

    def propose(self, texts: Sequence[str]) -> list[Words]:
        """Return the replaceable words of texts: those of letters alone that are one token.

        What lies beyond the model's positions stays as it is.
        """
        encoded = self.tokenizer(
            list(texts),
            truncation=True,
            max_length=self.family.positions(self.model.config),
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
        )
        found = [self._find(text, encoded, row) for row, text in enumerate(texts)]
        candidates = [np.empty((len(tokens), self.k), np.int64) for tokens, _ in found]
        jobs = [(row, first) for row, (tokens, _) in enumerate(found) for first in range(min(APART, len(tokens)))]
        jobs.sort(key=lambda job: len(encoded["input_ids"][job[0]]))  # little of a batch is padding
        for start in range(0, len(jobs), ROWS):
            part = jobs[start : start + ROWS]
            masked = [np.array(found[row][0][first::APART]) for row, first in part]
            chosen = self._choose([encoded["input_ids"][row] for row, _ in part], masked)
            for (row, first), ids in zip(part, chosen, strict=True):
                candidates[row][first::APART] = ids
        return [Words(text, places, ids) for text, (_, places), ids in zip(texts, found, candidates, strict=True)]

    def _find(self, text: str, encoded, row: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the places of the replaceable words of a text: of their tokens, and of their characters."""
        numbers = encoded.word_ids(row)
        tokens, places = [], []
        for token, (number, (first, after)) in enumerate(zip(numbers, encoded["offset_mapping"][row], strict=True)):
            alone = number is not None and number not in (numbers[token - 1], *numbers[token + 1 : token + 2])
            first += len(text[first:after]) - len(text[first:after].lstrip())  # Unigram tokens begin with the space
            beside = (text[first - 1 : first], text[after : after + 1])
            between = not any(mark.isalnum() or mark in APOSTROPHES for mark in beside if mark)
            if alone and between and text[first:after].isalpha():
                tokens.append(token)
                places.append((first, after))
        return tokens, places

    @torch.no_grad()
    def _choose(self, ids: list[list[int]], masked: list[np.ndarray]) -> list[np.ndarray]:
        """Return the likeliest other words [len(places), k] for the masked places of each sequence."""
        rows = [{"input_ids": sequence, "attention_mask": [1] * len(sequence)} for sequence in ids]
        padded = {name: torch.from_numpy(x) for name, x in pad_right(rows, self.tokenizer.pad_token_id).items()}
        inputs = padded["input_ids"]
        row = torch.from_numpy(np.repeat(np.arange(len(ids)), [len(places) for places in masked]))
        column = torch.from_numpy(np.concatenate(masked))
        originals = inputs[row, column].to(self.device)
        inputs[row, column] = self.tokenizer.mask_token_id
        hidden, _ = run_encoder(self.model, inputs.to(self.device), padded["attention_mask"].bool().to(self.device))
        logits: Tensor = self.family.get_decoder(self.model)(
            self.family.mlm_transform(self.model, hidden[row.to(self.device), column.to(self.device)])
        )
        logits = logits.float().masked_fill(self._hidden, float("-inf"))
        logits.scatter_(1, originals[:, None], float("-inf"))  # the word itself is no other word
        best = logits.topk(self.k, dim=-1).indices.cpu().numpy()
        return np.split(best, np.cumsum([len(places) for places in masked])[:-1])


def spell_tokens(tokenizer: PreTrainedTokenizerFast, size: int) -> tuple[list[str], np.ndarray]:
    """Return (the text of each token, bool [size], true for tokens that are a whole word of letters)."""
    kind = str(tokenizer.backend_tokenizer.pre_tokenizer)
    # byte-level and Unigram vocabularies mark what begins a word, WordPiece vocabularies what continues one
    start = "Ġ" if "ByteLevel" in kind else "▁" if "Metaspace" in kind else ""
    special = set(tokenizer.all_special_ids)
    tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
    spellings = [str(tokenizer.decode([number])).strip() for number in range(size)]
    return spellings, np.array(
        [
            token.startswith(start) and not token.startswith("##") and number not in special and _is_word(spelling)
            for number, (token, spelling) in enumerate(zip(tokens, spellings, strict=True))
        ]
    )


def _is_word(spelling: str) -> bool:
    letter = len(spelling) == 1 and spelling.isascii()
    return spelling.isalpha() and (not letter or spelling.lower() in LETTER_WORDS)
