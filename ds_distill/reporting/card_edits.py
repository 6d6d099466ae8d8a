"""Changes to a model card that stands in a folder already: its metadata, its title, one section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ds_distill.reporting.card_sections import MADE_WITH
from ds_distill.reporting.provenance import parse_front_matter
from ds_distill.utils.files import write_atomically

EXAMPLE_NAME = re.compile(r'^name = "[^"]*".*$', re.MULTILINE)


def for_repository(card: str, name: str) -> str:
    """Return a model card of this package with the repository's name as its title and in its example."""
    metadata, title = parse_front_matter(card), name.split("/")[-1]
    for entry in metadata.get("model-index") or []:
        card = card.replace(f"\n# {entry['name']}\n", f"\n# {title}\n", 1)
        entry["name"] = title
    if "model-index" not in metadata and MADE_WITH in card:
        card = re.sub(r"^# .*$", f"# {title}", card, count=1, flags=re.MULTILINE)
    card = EXAMPLE_NAME.sub(f'name = "{name}"', card, count=1)
    return set_metadata(card, **metadata) if metadata else card


def set_metadata(card: str, **entries: Any) -> str:
    """Return a model card with these entries in the YAML that it begins with, which replace those of the same names."""
    metadata = parse_front_matter(card)
    body = card[card.index("\n---\n", 4) + 5 :] if metadata else f"\n{card}"
    text = yaml.safe_dump(metadata | entries, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n{body}"


def put_section(card: Path, heading: str, text: str) -> None:
    """Write the section `## heading` with `text` into the Markdown file `card`.

    It replaces the section of that name if there is one, and creates the file if there is none.
    """
    old_text = card.read_text(encoding="utf-8") if card.is_file() else ""
    section = f"## {heading}\n\n{text.strip()}\n"
    match = re.search(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", old_text, flags=re.M | re.S)
    if match:
        new_text = (
            old_text[: match.start()] + section + ("\n" if old_text[match.end() :] else "") + old_text[match.end() :]
        )
    else:
        new_text = (old_text.rstrip("\n") + "\n\n" if old_text else "") + section
    write_atomically(card, new_text)
