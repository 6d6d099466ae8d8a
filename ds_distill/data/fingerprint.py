"""A fingerprint of a corpus's content that is quick to compute.

The same text is the same corpus wherever it lies.
"""

from __future__ import annotations

import hashlib

from ds_distill.data.remote import corpus_file, file_state
from ds_distill.data.sources import WorkUnit

BUDGET = 64 * 2**20  # how many bytes of a corpus are read; one that is no larger is read whole
BLOCK = 2**15


def content_fingerprint(pieces: list[WorkUnit]) -> str:
    """Return the hex sha256 of the pieces' files, source by source.

    It covers the kind, column, size and bytes of each file. Of a corpus beyond BUDGET, only the
    first block, the last and some in between are read from each file. A change of a few letters
    that keeps the size of a large file may therefore go unnoticed. A hub data set counts by its
    name.
    """
    files: dict[tuple[int, str], WorkUnit] = {}
    for piece in pieces:
        files.setdefault((piece.source, piece.path), piece)
    max_blocks, digest = max(2, BUDGET // BLOCK // max(1, len(files))), hashlib.sha256()
    for (source, path), piece in files.items():
        if piece.kind == "hub":
            digest.update(f"{source} {path} {piece.column}\n".encode())
            continue
        opened = corpus_file(path)
        with opened.open("rb", BLOCK) as file:
            size = file_state(opened)[0]
            digest.update(f"{source} {piece.kind} {piece.column} {size}\n".encode())
            if size <= max_blocks * BLOCK:
                while block := file.read(BLOCK):
                    digest.update(block)
                continue
            for number in range(max_blocks):
                file.seek((size - BLOCK) * number // (max_blocks - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
