"""Whole words begin where they should under every kind of tokenizer, and each has the same chance of being masked."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizerFast, PreTrainedTokenizerFast

from ds_distill.data.masking import IGNORE_INDEX, Masker, masked_count
from ds_distill.data.whole_words import LONGEST_WORD, SPACED, Words, choose_words, split_words
from ds_distill.data.words import find_words

VOCAB, SPECIAL, MASK = 60, [0, 1, 2, 3, 4], 4
TEXT = [
    "The student's (small) model learns quickly, doesn't it? naïve café 3.14",
    "在这个世界上，有许多事情",
    "私はその人を常に先生と呼んでいた。",
    "มนุษย์ทั้งหลาย",
    "모든 인간은 태어날 때부터",
    "Все люди рождаются",
    "Tiếng Việt",
    "🙂🙂 ok!",
]
NAMES = {
    "bos_token": "<s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
MARKS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def trained(kind):
    """Train a tokenizer of single characters and bytes, so that nearly every word has several pieces."""
    characters = sorted({c for text in TEXT for c in text if c != " "})
    if kind == "wordpiece":
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
        return BertTokenizerFast(
            vocab={piece: i for i, piece in enumerate(pieces)}, do_lower_case=False, strip_accents=False
        )
    if kind == "unigram":
        backend = Tokenizer(
            models.Unigram([(name, 0.0) for name in MARKS] + [("▁", -3.0), *((c, -4.0) for c in characters)], unk_id=3)
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    elif kind == "suffix":
        backend = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.train_from_iterator(
            TEXT,
            trainers.BpeTrainer(vocab_size=0, show_progress=False, end_of_word_suffix="</w>", special_tokens=MARKS),
        )
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        backend.train_from_iterator(
            [], trainers.BpeTrainer(show_progress=False, special_tokens=MARKS, initial_alphabet=alphabet)
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES)


def words_in(tokenizer, text):
    """Return the words of a text, each as the characters that its pieces stand for."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = find_words(tokenizer).starts(np.array(encoded["input_ids"]))
    spans = np.split(np.array(encoded["offset_mapping"]), np.flatnonzero(starts)[1:])
    return [text[span[:, 0].min() : span[:, 1].max()].strip() for span in spans]


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bytelevel", "suffix"])
def test_words_are_the_same_under_every_kind_of_tokenizer(kind):
    tokenizer = trained(kind)
    assert find_words(tokenizer).is_marked
    for text, words in (
        ("The student's (small) model", ["The", "student", "'", "s", "(", "small", ")", "model"]),
        ("learns quickly, doesn't it?", ["learns", "quickly", ",", "doesn", "'", "t", "it", "?"]),
        ("naïve café 3.14", ["naïve", "café", "3", ".", "14"]),
        ("Все люди рождаются", ["Все", "люди", "рождаются"]),
        ("Tiếng Việt", ["Tiếng", "Việt"]),
        ("모든 인간은 태어날", ["모든", "인간은", "태어날"]),
    ):
        assert words_in(tokenizer, text) == words


@pytest.mark.parametrize("kind", ["wordpiece", "unigram", "bytelevel"])
def test_where_no_space_stands_between_words_a_piece_is_one_and_no_character_is_divided(kind):
    tokenizer = trained(kind)
    for text in ("在这个世界上，有许多事情", "私はその人を常に先生", "🙂🙂"):
        if kind == "wordpiece" and text == "🙂🙂":
            continue  # BERT's splitting takes a run of symbols for one word; here its pieces are characters
        assert words_in(tokenizer, text) == list(text)


def test_characters_that_are_divided_into_bytes_are_whole_again():
    """A byte-level vocabulary without merges for a script spells its characters byte by byte."""
    tokenizer = trained("bytelevel")
    for text, words in (
        ("שלום עולם", ["שלום", "עולם"]),
        ("£5 «r» ©2020", ["£", "5", "«", "r", "»", "©", "2020"]),
        ("ⲁⲃⲅ ⲇⲉ", ["ⲁⲃⲅ", "ⲇⲉ"]),
        ("ⵜⵉⴼⵉ", ["ⵜⵉⴼⵉ"]),
        ("𐌰𐌱 𝕏math", ["𐌰𐌱", "𝕏math"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("ລາວ", ["ລ", "າ", "ວ"]),
        ("ខ្មែរ x", ["ខ្", "មែ", "រ", "x"]),
        ("a—b…", ["a", "—", "b", "…"]),
        ("हिन्दी शब्द", ["हिन्दी", "शब्द"]),
        ("𠀀𠀁", ["𠀀", "𠀁"]),
    ):
        assert words_in(tokenizer, text) == words


def test_a_mark_stays_with_the_letter_that_it_is_written_on():
    tokenizer = trained("unigram")
    assert words_in(tokenizer, "มนุษย์ทั้ง") == ["ม", "นุ", "ษ", "ย์", "ทั้", "ง"]


def test_pieces_that_show_no_words_are_words():
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=200, show_progress=False, special_tokens=MARKS))
    words = find_words(PreTrainedTokenizerFast(tokenizer_object=backend, **NAMES))
    assert not words.is_marked and words.starts(np.arange(5, 20)).all()
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    words = find_words(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>"))
    assert words.is_marked and words.starts(np.array([1, 2, 1])).all()


def a_block(lengths):
    """Return (ids with [CLS] and [SEP], the word of each id between them); pieces from 30 on continue a word."""
    words = [[10 + i % 20, *[30 + i % 20] * (length - 1)] for i, length in enumerate(lengths)]
    return np.array([2, *sum(words, []), 3]), np.repeat(np.arange(len(lengths)), lengths)


def a_masker(probability=0.15, counts=None, smoothing=0.7):
    counts = np.full(VOCAB, 7) if counts is None else counts
    words = Words(np.where(np.arange(VOCAB) >= 30, 0, SPACED).astype(np.uint8))
    return Masker(counts, SPECIAL, MASK, VOCAB, 0, probability, smoothing, words=words)


@pytest.mark.parametrize(
    "lengths, probability",
    [
        ([1, 2, 1, 3, 1, 1, 5, 1, 2, 1] * 6, 0.15),
        ([1, 1, 2, 4, 1, 8, 1, 3] * 6, 0.15),
        ([1, 10] * 12, 0.15),
        ([1, 1, 1, 2] * 4, 0.15),
        ([1, 2, 3, 4] * 20, 0.3),
        ([1, 1, 2] * 30, 0.5),
    ],
)
def test_each_word_is_masked_with_the_same_chance_whatever_its_pieces(lengths, probability):
    ids, word = a_block(lengths)
    masker, blocks = a_masker(probability), 2500
    count = masked_count(len(word), probability)
    masked = np.zeros((blocks, len(lengths)))
    for block in range(blocks):
        chosen = masker.mask(ids, epoch=0, block=block)[1][1:-1] != IGNORE_INDEX
        pieces = np.bincount(word, weights=chosen)
        assert (
            chosen.sum() == count and ((pieces == 0) | (pieces == lengths)).all()
        )  # whole words only, and the exact count
        masked[block] = pieces > 0
    whole, chance = masked.sum(0), count / len(word)
    for length in set(lengths):
        shares = masked[:, np.array(lengths) == length].mean(1)
        assert abs(shares.mean() - chance) < 4 * max(shares.std(), 0.01) / sqrt(blocks), f"words of {length} pieces"
    assert (abs(whole - blocks * chance) < 5 * sqrt(blocks * chance * (1 - chance))).all()


def test_a_word_of_more_pieces_than_may_be_masked_has_its_chance_too_and_each_of_its_pieces():
    lengths = [1] * 10 + [7]
    ids, word = a_block(lengths)
    masker, blocks = a_masker(), 4000
    assert masked_count(17) == 3
    touched, pieces = np.zeros(11), np.zeros(17)
    for block in range(blocks):
        chosen = masker.mask(ids, epoch=0, block=block)[1][1:-1] != IGNORE_INDEX
        assert chosen.sum() == 3
        touched += np.bincount(word, weights=chosen) > 0
        pieces += chosen
    assert touched[-1] / blocks == pytest.approx(touched[:-1].mean() / blocks, abs=0.03)
    assert pieces.min() > 0.03 * blocks


def test_rare_words_are_preferred_and_their_length_does_not_matter():
    counts = np.full(VOCAB, 1000)
    counts[[11, 31]], counts[[13, 33]] = 10, 10  # words 1 and 3, of one piece and of three
    lengths = [1, 1, 3, 3] * 10
    ids, word = a_block(lengths)
    kinds = np.array([(i % 20 in (1, 3), length) for i, length in enumerate(lengths)])
    whole = np.zeros(len(lengths))
    for block in range(3000):
        chosen = a_masker(0.1, counts, 0.3).mask(ids, epoch=0, block=block)[1][1:-1] != IGNORE_INDEX
        whole += np.bincount(word, weights=chosen) > 0
    share = {
        (rare, length): whole[(kinds == (rare, length)).all(1)].mean() / 3000 for rare in (0, 1) for length in (1, 3)
    }
    assert share[1, 1] > 2 * share[0, 1] and share[1, 3] > 2 * share[0, 3]
    assert share[1, 1] == pytest.approx(share[1, 3], rel=0.25) and share[0, 1] == pytest.approx(share[0, 3], rel=0.1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 14), min_size=1, max_size=40), st.floats(0.01, 0.99), st.integers(0, 2**31), st.booleans()
)
def test_any_words_give_the_exact_count(lengths, probability, seed, alike):
    random = np.random.default_rng(seed)
    weights = np.ones(len(lengths)) if alike else random.random(len(lengths)) ** 9 + 1e-12
    count = max(1, masked_count(sum(lengths), probability))
    taken = choose_words(np.array(lengths), weights, random.random(len(lengths)), count, random.random(count + 1))
    assert taken.sum() == count and (taken >= 0).all() and (taken <= lengths).all()
    sizes = np.minimum(lengths, count)
    assert ((taken != 0) & (taken != sizes)).sum() <= 1, "one word in part at most"


@pytest.mark.parametrize(
    "lengths",
    [
        [5] * 22 + [1] * 3,
        [4] * 15 + [1],
        [3] * 10 + [1] * 2,
        [10] * 3 + [1] * 2,
        [1] * 10 + [2] * 5 + [3] * 3,
        [6, 6, 6],
        [1] * 4 + [9] * 9,
    ],
)
def test_words_of_every_length_have_the_same_share_masked_where_few_are_short(lengths):
    random, blocks, lengths = np.random.default_rng(0), 4000, np.array(lengths)
    count = max(1, masked_count(lengths.sum()))
    share = np.zeros(len(lengths))
    for _ in range(blocks):
        keys = random.exponential(size=len(lengths))
        share += choose_words(lengths, np.ones(len(lengths)), keys, count, random.random(count + 1)) / np.minimum(
            lengths, count
        )
    means = [share[lengths == length].mean() / blocks for length in set(lengths)]
    assert max(means) - min(means) < 4 * sqrt(2 * 0.25 / blocks), dict(zip(set(lengths), means, strict=True))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
def test_long_runs_are_divided_into_parts_that_are_nearly_alike(lengths):
    starts = np.zeros(sum(lengths), bool)
    starts[np.cumsum([0, *lengths[:-1]])] = True
    first, parts = split_words(starts)
    assert (
        (np.cumsum(parts) == np.append(first[1:], len(starts))).all() and first[0] == 0 and parts.max() <= LONGEST_WORD
    )
    assert set(np.flatnonzero(starts)) <= set(first)
    for begin, length in zip(np.flatnonzero(starts), lengths, strict=True):
        run_parts = parts[(first >= begin) & (first < begin + length)]
        assert run_parts.sum() == length and run_parts.max() - run_parts.min() <= 1
