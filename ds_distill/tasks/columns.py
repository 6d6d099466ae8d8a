"""The choice of a file's text columns where no task names them.

Columns are chosen by their names, never by their place.
"""

from __future__ import annotations

import re
from pathlib import Path

from ds_distill.tasks.catalog import TASKS
from ds_distill.utils.errors import UserError, expand_user

# Data sets give these names to their texts: one column, or two in the order in which a model reads
# them.
KNOWN = {task.texts for task in TASKS.values() if not task.tokens} | {
    ("text", "text_pair"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("first", "second"),
    ("query", "passage"),
    ("query", "document"),
    ("question", "answer"),
}
NO_TEXT = re.compile(
    r"(.*[^a-z])?(ids?|idx|index|[gu]uid|uid|key|hash|sha\d*|md5|url|uri|path|filename|gold|"
    r"date|datetime|time|timestamp|((created|updated|published)(_at)?))|.*label.*"
)
# Next to texts of known names, columns of these names are not texts. Next to others they may be:
# `source` and `target` are a pair, too.
ABOUT_TEXT = re.compile(
    r"(.*[^a-z])?(source|origin|dataset|corpus|split|fold|file|html?|lang|language|locale|country|genre|domain|author|"
    r"user|username|annotator|worker|license|version)"
)
NUMBER = re.compile(r"[-+\d.,:/e\s]*")  # It also matches dates: csv and tsv hold everything as text.


def named_columns(given: str) -> tuple[Path, list[str]]:
    """Return the file of labeled examples that `given` names, and the columns behind its #, if any."""
    if "#" not in given or expand_user(given).exists():
        return expand_user(given), []
    name, _, columns = given.rpartition("#")
    names = columns.split(",")
    if not 1 <= len(names) <= 2 or not all(map(str.strip, (*names, name))):
        raise UserError(f"--data {given}: name one or two text columns after the #, as in {name}#COLUMN,COLUMN")
    return expand_user(name), names


def text_columns(rows: list[dict], given: str) -> list[str]:
    """Return the one or two columns of `rows` that hold the texts, in the model's order.

    Columns of numbers, ids, places, dates and labels are not texts. The remaining columns are read
    if there is only one, or if they have the names that data sets give to a text or to the two
    texts of a pair. In any other case the user must name them: one text too many or too few changes
    every output, and the score does not show it.

    Args:
        rows: All rows of the file.
        given: The option and the file, for the error.

    Raises:
        UserError: If a doubt remains. The message has the columns and the remedy.
    """
    names = dict.fromkeys(str(name) for row in rows for name in row)
    texts = [name for name in names if _has_words(rows, name) and not NO_TEXT.fullmatch(_folded(name))]
    for candidates in (texts, [name for name in texts if not ABOUT_TEXT.fullmatch(_folded(name))]):
        if known := next((known for known in KNOWN if sorted(known) == sorted(candidates)), None):
            return list(known)
    if len(texts) == 1 or _are_numbered(texts):
        return sorted(texts)
    if not texts:
        raise UserError(
            f"{given}: the columns are {', '.join(names)}; a column `label` and one or two text columns are needed"
        )
    raise UserError(
        f"{given}: the text may be in any of {', '.join(texts)}; name the one or two columns that the model reads, in "
        f"order: {given.rpartition(' ')[-1]}#{','.join(texts[:2])}"
    )


def _has_words(rows: list[dict], name: str) -> bool:
    values = [row[name] for row in rows if isinstance(row.get(name), str)]
    is_known = any(name in columns for columns in KNOWN)
    return bool(values) and (is_known or not all(NUMBER.fullmatch(value) for value in values))


def _folded(name: str) -> str:
    """Return a name in lower case with an underscore at each change of case: pairID becomes pair_id."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()


def _are_numbered(names: list[str]) -> bool:
    """Return whether two names differ only in their last character: 1 and 2, or a and b."""
    if len(names) != 2:
        return False
    (stem, first), (other, second) = ((name[:-1], name[-1:].casefold()) for name in sorted(names))
    return stem == other and first + second in ("12", "ab")
