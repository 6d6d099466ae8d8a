"""Saving a tokenizer so that every transformers release from 4.46 on reads it in the same way.

This holds for programs other than transformers, too. transformers 5 leaves out of
tokenizer_config.json the settings that equal its own defaults, which are not the defaults of
transformers 4. It names classes and keys that transformers 4 does not know, and it keeps settings
of the process that loaded the tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers.models import BPE, WordPiece
from transformers import PreTrainedTokenizerFast

# Both major versions have these classes under one name. transformers 4 applies do_lower_case,
# add_prefix_space and similar settings, which are always saved, to the tokenizer that it reads from
# tokenizer.json, so it ends with the same tokenizer. Under any other name it may change more, not
# know the class, or require a SentencePiece model's own file with `use_fast=False`.
SHARED_CLASSES = ("BertTokenizer", "DistilBertTokenizer", "RobertaTokenizer")
READS_JSON_ONLY = "PreTrainedTokenizerFast"  # reads tokenizer.json as it is, in both major versions

# These settings tell how the tokenizer was loaded, or name code that is not in the folder.
PROCESS_SETTINGS = (
    "is_local",
    "local_files_only",
    "name_or_path",
    "backend",
    "auto_map",
    "vocab_file",
    "merges_file",
    "tokenizer_file",
    "special_tokens_map_file",
    "files_loaded",
    "cache_dir",
    "_commit_hash",
    "revision",
    "token",
)


def make_portable(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Rewrite tokenizer_config.json in `folder` so that no default of a release matters.

    save_pretrained must have written that file for `tokenizer`. The function also adds the
    vocabulary files that transformers 4 reads with `use_fast=False`.
    """
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    for key in PROCESS_SETTINGS:
        settings.pop(key, None)
    name = settings.get("tokenizer_class", "").removesuffix("Fast")
    settings["tokenizer_class"] = name if name in SHARED_CLASSES else READS_JSON_ONLY
    settings["model_input_names"] = list(tokenizer.model_input_names)
    settings["padding_side"], settings["truncation_side"] = tokenizer.padding_side, tokenizer.truncation_side
    # transformers 5 never cleans up after a BPE; transformers 4 does if the setting is true.
    is_bpe = isinstance(tokenizer.backend_tokenizer.model, BPE)
    settings["clean_up_tokenization_spaces"] = bool(tokenizer.clean_up_tokenization_spaces) and not is_bpe
    # A list under the name that transformers 5 uses is an AttributeError in transformers 4, which
    # expects a dictionary there.
    if isinstance(extra := settings.get("extra_special_tokens"), list):
        del settings["extra_special_tokens"]
        settings["additional_special_tokens"] = extra
    file.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    if settings["tokenizer_class"] != READS_JSON_ONLY:
        _write_vocabulary_files(tokenizer, folder)


def _write_vocabulary_files(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write vocab.txt for a WordPiece, or vocab.json and merges.txt for a BPE.

    A vocab.txt numbers tokens by line, so none is written for ids with gaps.
    """
    model, vocabulary = (
        tokenizer.backend_tokenizer.model,
        tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False),
    )
    if isinstance(model, WordPiece):
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        if [vocabulary[token] for token in tokens] == list(range(len(tokens))) and not any(
            "\n" in token or "\r" in token for token in tokens
        ):
            (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    elif isinstance(model, BPE):
        model.save(str(folder))
