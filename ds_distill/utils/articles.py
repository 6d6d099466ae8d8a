"""The article before a name in a message."""

import re

# Names that begin with the sound of a vowel. Of MPNet and XLM-RoBERTa people spell the first letters: em, ex.
VOWEL_SOUND = re.compile("[aeiou]|mpnet|xlm", re.IGNORECASE)


def with_article(name: str) -> str:
    """Return `name`, of a family, a class or a head, after "a" or "an"."""
    return f"{'an' if VOWEL_SOUND.match(name) else 'a'} {name}"
