"""Articles and plurals of the nouns in messages."""

import re

# Names that begin with the sound of a vowel. Of MPNet and XLM-RoBERTa people spell the first letters: em, ex.
VOWEL_SOUND = re.compile("[aeiou]|mpnet|xlm", re.IGNORECASE)


def with_article(name: str) -> str:
    """Return `name`, of a family, a class or a head, after "a" or "an"."""
    return f"{'an' if VOWEL_SOUND.match(name) else 'a'} {name}"


def counted(count: int, noun: str) -> str:
    """Return a number and what it counts, such as "1 student" and "5,087 students".

    Args:
        count: The number.
        noun: The singular of a noun with a regular plural.
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
