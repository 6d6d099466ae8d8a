"""Test which words of a text are replaced, and by what."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.augment.words import APART, CANDIDATES, REPLACED, WordProposer
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.models.loading import load_masked_lm
from tests.tiny import save_encoder

KINDS = ("bert", "roberta", "xlm-roberta")  # WordPiece, byte-level BPE and Unigram


@pytest.fixture(scope="module")
def proposers(tmp_path_factory):
    folders = {family: save_encoder(family, tmp_path_factory.mktemp(family)) for family in KINDS}
    return {
        family: WordProposer(load_masked_lm(str(folder)), load_tokenizer(folder)) for family, folder in folders.items()
    }


def is_whole(tokenizer, number: int) -> bool:
    """Return whether a token alone is a word that the tokenizer takes for that token in a sentence."""
    word = tokenizer.decode([number]).strip()
    if not word.isalpha() or (len(word) == 1 and word.lower() not in "ai"):
        return False
    pieces = tokenizer.tokenize(f". {word}")
    return pieces[-1] == tokenizer.convert_ids_to_tokens(number) and pieces[:-1] == tokenizer.tokenize(".")


@pytest.mark.parametrize("family", KINDS)
def test_candidates_are_the_likeliest_other_words_where_every_fourth_word_is_masked(proposers, family):
    proposer = proposers[family]
    tokenizer = proposer.tokenizer
    whole = [number for number in range(len(tokenizer)) if is_whole(tokenizer, number)]
    text = " ".join([". unreplaceablewords", *(tokenizer.decode([number]).strip() for number in whole[:9])])
    (words,) = proposer.propose([text])
    encoded = tokenizer(text)
    tokens = [encoded.char_to_token(first) for first, _ in words.places]
    assert [encoded["input_ids"][token] for token in tokens] == whole[:9]
    for number, token in enumerate(tokens):
        masked = torch.tensor([encoded["input_ids"]])
        masked[0, tokens[number % APART :: APART]] = tokenizer.mask_token_id
        with torch.no_grad():
            order = proposer.model(masked).logits[0, token].argsort(descending=True).tolist()
        others = [i for i in order if i in whole and i != encoded["input_ids"][token]]
        assert words.candidates[number].tolist() == others[:CANDIDATES]


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.sampled_from(["the", "River", "a", "'s", "’", "-", ",", ".", "é", "中", "😀", " ", "\n", "x1"])),
    seed=st.integers(0, 5),
)
def test_only_words_change(proposers, parts, seed):
    """What lies between the words stays, whatever the text."""
    text = "".join(parts)
    for proposer in proposers.values():
        (words,) = proposer.propose([text])
        pattern, end = "", 0
        for (first, after), candidates in zip(words.places, words.candidates, strict=True):
            spellings = [text[first:after], *(proposer.spellings[number] for number in candidates)]
            pattern += re.escape(text[end:first]) + f"({'|'.join(map(re.escape, spellings))})"
            end = after
        changed = words.replace(np.random.default_rng(seed), proposer.spellings)
        assert re.fullmatch(pattern + re.escape(text[end:]), changed)


def test_a_share_of_the_words_is_replaced(proposers):
    proposer = proposers["bert"]
    (words,) = proposer.propose(["the river " * 20])
    random, changed = np.random.default_rng(0), 0
    for _ in range(100):
        now = words.replace(random, proposer.spellings).split()
        changed += sum(a != b for a, b in zip(now, words.text.split(), strict=True))
    assert len(words.places) > 10 and abs(changed / (100 * len(words.places)) - REPLACED) < 0.05
    assert words.replace(np.random.default_rng(1), proposer.spellings) == words.replace(
        np.random.default_rng(1), proposer.spellings
    )


def test_texts_do_not_depend_on_what_stands_beside_them(proposers):
    proposer = proposers["bert"]
    texts = ["the river", "", "a hill and the town of the river " * 9, "a town"]
    together = proposer.propose(texts)
    for text, words in zip(texts, together, strict=True):
        (alone,) = proposer.propose([text])
        assert alone.places == words.places and np.array_equal(alone.candidates, words.candidates)
