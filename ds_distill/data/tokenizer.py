"""BERT-style WordPiece tokenizers, trained from text or loaded from a Hugging Face folder."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from transformers import (  # type: ignore[attr-defined]  # transformers makes BertTokenizerFast when asked for it
    AutoTokenizer,
    BertTokenizerFast,
    PreTrainedTokenizerFast,
)

from ds_distill.data.portable_tokenizer import make_portable
from ds_distill.run_folder import find_model
from ds_distill.utils.errors import UserError, expand_user
from ds_distill.utils.git_lfs import check_not_lfs_pointer
from ds_distill.utils.hub import find_cached, split_name

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MIN_VOCAB, MAX_ALPHABET = 200, 1000

# BERT's words are runs of letters and digits. Every other mark, the underscore too, stands alone.
_WORDS = re.compile(r"[^\W_]+|[^\w\s]|_")
# A private-use plane tells a character inside a word from one at its start.
_CONTINUING = 0xF0000


def train_wordpiece(texts: Iterable[str], vocab_size: int, output: Path) -> PreTrainedTokenizerFast:
    """Train an uncased WordPiece vocabulary and save it as a Hugging Face folder at `output`.

    The vocabulary has at most `vocab_size` tokens. The same texts give the same vocabulary and ids.

    Raises:
        UserError: If the vocabulary is below 200, or the texts hold no word.
    """
    if vocab_size < MIN_VOCAB:
        raise UserError(f"vocab_size = {vocab_size}: must be at least {MIN_VOCAB}")
    normalize = BertNormalizer(lowercase=True).normalize_str
    words: Counter[str] = Counter()
    for text in texts:
        words.update(_WORDS.findall(normalize(text)))
    if not words:
        raise UserError("the training texts of the tokenizer contain no words; give files that contain text")
    vocabulary = {
        token: index
        for index, token in enumerate(SPECIAL_TOKENS + _wordpieces(words, vocab_size - len(SPECIAL_TOKENS)))
    }
    save_tokenizer(BertTokenizerFast(vocab=vocabulary, do_lower_case=True, model_max_length=512), output)
    return load_tokenizer(output)


def _wordpieces(words: Counter[str], size: int) -> list[str]:
    """Return the pieces of a vocabulary without special tokens, where ## marks those inside a word.

    WordPieceTrainer numbers its ## characters in hash order and breaks ties between merges by
    number, so two runs on one text differ. Here characters inside a word are mapped to code points
    of their own and trained as plain BPE, whose alphabet is sorted. The merges are the same, in an
    order that never changes.
    """
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    ranked = sorted(characters, key=lambda c: (-characters[c], c))
    # A small vocabulary must not be spent on rare characters.
    alphabet = sorted(ranked[: min(MAX_ALPHABET, size // 4)])
    inside = {character: chr(_CONTINUING + index) for index, character in enumerate(alphabet)}
    outside = {code: character for character, code in inside.items()}

    def repeated() -> Iterator[str]:
        for word, count in words.items():
            if all(c in inside for c in word):  # Otherwise the whole word is [UNK] and teaches nothing.
                mapped = word[0] + "".join(inside[c] for c in word[1:])
                # The trainer counts words itself and does not accept the counts.
                for start in range(0, count, 10_000):
                    yield " ".join([mapped] * min(10_000, count - start))

    trained = Tokenizer(BPE())
    trained.pre_tokenizer = WhitespaceSplit()
    trained.train_from_iterator(repeated(), BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False))
    by_id = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return [("##" if p[0] in outside else "") + "".join(outside.get(c, c) for c in p) for p, _ in by_id]


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerFast:
    """Load a fast tokenizer from a folder, or from the local cache of a hub name, NAME or NAME@REVISION.

    Raises:
        UserError: If there is no fast tokenizer with mask, padding, [CLS] and [SEP] tokens.
    """
    name = str(path)
    looks_local = isinstance(path, Path) or name.startswith(("/", ".", "~")) or split_name(name)[0].count("/") > 1
    if looks_local and not expand_user(name).is_dir():
        raise UserError(
            f"{name}: no such tokenizer folder; give a folder saved with save_pretrained, or a model's name"
        )
    folder = find_model(expand_user(name))
    if not folder.is_dir():
        folder = find_cached(name) or folder
    for file in (*folder.glob("*.json"), *folder.glob("vocab*")):
        check_not_lfs_pointer(file)
    if spm := _only_sentencepiece(folder):
        raise UserError(
            f"{name}: the only tokenizer file is {spm.name}, which needs sentencepiece; create tokenizer.json once, "
            "where sentencepiece and protobuf are installed: "
            f"`AutoTokenizer.from_pretrained('{name}').save_pretrained('{name}')`"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # For a broken file the libraries raise whatever breaks first.
        reason = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"{name}: the tokenizer cannot be loaded ({reason}); give a folder that contains tokenizer.json and "
            "tokenizer_config.json, or download a hub model once with `hf download`"
        ) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UserError(
            f"{name}: not a fast tokenizer (no tokenizer.json); convert it with transformers and save it again"
        )
    # This is what transformers 5 makes of a model's folder without a tokenizer's files.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise UserError(f"{name}: the folder contains no tokenizer; give one that contains tokenizer.json or vocab.txt")
    _name_ends(tokenizer)
    for kind in ("mask", "pad", "cls", "sep"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            raise UserError(
                f"{name}: the tokenizer has no {kind} token; masked language modeling needs the tokenizer of a "
                "BERT-like encoder"
            )
    return cast(PreTrainedTokenizerFast, tokenizer)  # Others have no backend_tokenizer.


def _name_ends(tokenizer) -> None:
    """Have a tokenizer that puts texts between its BOS and EOS, and names no [CLS] and [SEP], call them so, too."""
    if tokenizer.cls_token is None and tokenizer.sep_token is None:
        ids = tokenizer("a", add_special_tokens=True)["input_ids"]
        if len(ids) > 2 and None not in (ends := [tokenizer.bos_token_id, tokenizer.eos_token_id]):
            if [ids[0], ids[-1]] == ends:
                tokenizer.cls_token, tokenizer.sep_token = tokenizer.bos_token, tokenizer.eos_token


def _only_sentencepiece(folder: Path) -> Path | None:
    """Return the SentencePiece model of a folder with no other tokenizer file, if it cannot be read.

    It cannot be read where this environment lacks the sentencepiece package.
    """
    if not folder.is_dir() or any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt", "vocab.json")):
        return None
    if importlib.util.find_spec("sentencepiece"):
        return None
    return next((file for file in (*folder.glob("*.model"), *folder.glob("*.spm"))), None)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a tokenizer's files into `folder`, without truncation and padding.

    A call leaves these settings behind; in tokenizer.json they would make readers other than
    transformers truncate. The settings in tokenizer_config.json hold in transformers 4 as well.
    """
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    make_portable(tokenizer, folder)


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return a copy of the Rust tokenizer that neither truncates nor pads, and reads '[MASK]' in a text as text."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Return 1 + the largest id.

    A vocabulary that holds a name twice has fewer names than ids, and `len` counts names.
    """
    return 1 + max(tokenizer.get_vocab().values())


def special_ids(tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """Return, in order, the ids that are never masked and never drawn.

    These are the special tokens, and the ids below the largest that no name has.
    """
    unused = set(range(vocabulary_size(tokenizer))) - set(tokenizer.get_vocab().values())
    return tuple(sorted(unused | set(tokenizer.all_special_ids)))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of the tokenizer's JSON, without truncation and padding.

    These two belong to a call, not to the tokenizer.
    """
    return hashlib.sha256(plain_backend(tokenizer).to_str().encode()).hexdigest()
