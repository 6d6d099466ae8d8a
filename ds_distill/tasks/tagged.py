"""Sentences with a tag per word, from CoNLL's layout or from rows of lists.

Source of the layout: Tjong Kim Sang and De Meulder 2003 (CoNLL-2003). Source of the BIO scheme:
Ramshaw and Marcus 1995, in the form in which each entity begins with B.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_distill.data.charset import replace_surrogates
from ds_distill.tasks.examples import UNREADABLE, check_value, get_file_suffix, open_text, read_rows
from ds_distill.utils.errors import UserError, did_you_mean
from ds_distill.utils.git_lfs import check_not_lfs_pointer

OUTSIDE = "O"
DOCUMENT = "-DOCSTART-"  # CoNLL-2003 begins a document with it
# What CoNLL-U and its relatives write above a sentence: "# sent_id = 7", "# newdoc", "# id 7". A word may be "#", too.
COMMENT = re.compile(r"# +(?:[\w.]+ *=|(?:newdoc|newpar|id)\b)")


@dataclass
class Sentence:
    """A sentence.

    Args:
        file: Its file.
        lines: The line of each word; all the same where a line holds the sentence.
        words: Its words.
        tags: The tag of each word.
    """

    file: Path
    lines: list[int]
    words: list[str]
    tags: list[str]

    @property
    def where(self) -> str:
        """The file and the line where it begins."""
        return f"{self.file}, line {self.lines[0]}"


def read_sentences(
    file: Path, text: str = "tokens", label: str = "tags", types: Sequence[str] = ()
) -> Iterator[Sentence]:
    """Yield the sentences of a file.

    In CoNLL's layout a line has a word first and its tag last, separated by white space, and an
    empty line ends a sentence. Comments before its first word are left out. Files with columns have a list of words
    and a list of tags in a row.

    Args:
        file: The file.
        text: The column of the words, for files with columns.
        label: The column of the tags, for files with columns.
        types: The task's tags, by number, for tags that are numbers.

    Raises:
        UserError: A line has no tag, or a row not as many tags as words. The message has the file
            and the line.
    """
    yield from _rows(file, text, label, types) if get_file_suffix(file) else _lines(file)


def _lines(file: Path) -> Iterator[Sentence]:
    check_not_lfs_pointer(file)
    sentence = Sentence(file, [], [], [])
    try:
        with open_text(file) as stream:
            for number, line in enumerate(stream, 1):
                # Spaces and tabs alone separate: a no-break space is part of a word, as in 10 000.
                text = line.strip(" \t\r\n")
                fields = [field.strip(" ") for field in (text.split("\t") if "\t" in text else re.split(" +", text))]
                if not line.strip() or fields[0] == DOCUMENT:
                    if sentence.words:
                        yield sentence
                    sentence = Sentence(file, [], [], [])
                    continue
                if not sentence.words and COMMENT.match(text):
                    continue
                if len(fields) < 2 or not fields[0] or not fields[-1].strip():
                    raise UserError(
                        f"{file}, line {number}: {line.strip()!r}: must have a word and its tag, separated by a tab or "
                        "a space; complete the line, or leave it empty between sentences"
                    )
                sentence.lines.append(number)
                sentence.words.append(replace_surrogates(fields[0]))
                sentence.tags.append(replace_surrogates(fields[-1].strip()))
    except UNREADABLE as error:
        raise UserError(f"{file}: cannot be read ({error}); give a complete file in UTF-8") from error
    if sentence.words:
        yield sentence


def _rows(file: Path, text: str, label: str, types: Sequence[str]) -> Iterator[Sentence]:
    for line, row in read_rows(file):
        where = f"{file}, line {line}"
        for name in (text, label):
            check_value(row, name, where)
            if not isinstance(row.get(name), list):
                columns = [str(column) for column in row]
                problem = f"no column {name}{did_you_mean(name, columns)}" if name not in row else f"no list in {name}"
                raise UserError(
                    f"{where}: {problem}; the columns are {', '.join(columns)}; give a list of words in `{text}` and "
                    f"one of their tags in `{label}`, or name other columns as `text` and `label` of the task"
                )
        words, tags = row[text], row[label]
        if len(words) != len(tags):
            raise UserError(f"{where}: {len(words)} words, but {len(tags)} tags; give each word, as text, one tag")
        if others := [word for word in words if not isinstance(word, str)]:
            raise UserError(f"{where}: {others[0]!r} in {text}: not a word; give each word as text")
        if words:
            names = [
                types[tag] if isinstance(tag, int) and 0 <= tag < len(types) else replace_surrogates(str(tag))
                for tag in tags
            ]
            yield Sentence(file, [line] * len(words), [replace_surrogates(word) for word in words], names)


def check_tags(sentence: Sentence) -> None:
    """Raise UserError, with file, line and remedy, where the tags of a sentence break the BIO scheme."""
    previous = OUTSIDE
    for line, word, tag in zip(sentence.lines, sentence.words, sentence.tags, strict=True):
        where = f"{sentence.file}, line {line}: tag {tag!r} of {word!r}"
        if tag != OUTSIDE and (tag[:2] not in ("B-", "I-") or not tag[2:]):
            raise UserError(
                f"{where}: not in the BIO scheme, whose tags are O, B-TYPE and I-TYPE; correct it (with metric: "
                "accuracy in the task, tags may be any words)"
            )
        if tag.startswith("I-") and previous[2:] != tag[2:]:
            raise UserError(
                f"{where}: continues an entity, but the word before has {previous!r}; write B-{tag[2:]} where an "
                "entity begins"
            )
        previous = tag


def tags_of_types(types: Sequence[str]) -> tuple[str, ...]:
    """Return the tags of the BIO scheme for types of entities, O first."""
    return (OUTSIDE, *(f"{mark}-{name}" for name in types for mark in "BI"))
