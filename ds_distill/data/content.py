"""What a corpus holds, as a fingerprint that is quick to take: the same text is the same corpus wherever it lies."""

from __future__ import annotations

import hashlib
import os

from ds_distill.data.sources import WorkUnit

BUDGET = 64 * 2**20  # bytes that are read of a corpus; one of no more is read whole
BLOCK = 2**15


def content_fingerprint(pieces: list[WorkUnit]) -> str:
    """Hex sha256 of the files that the pieces are of, source by source: of each its kind, column, size and bytes.

    Of a corpus beyond BUDGET the first, the last and some blocks between of each file are read, so that a change of a few letters that leaves a large
    file as long as it was may go unnoticed. A hub data set counts by its name.
    """
    files: dict[tuple[int, str], WorkUnit] = {}
    for piece in pieces:
        files.setdefault((piece.source, piece.path), piece)
    most, digest = max(2, BUDGET // BLOCK // max(1, len(files))), hashlib.sha256()
    for (source, path), piece in files.items():
        if piece.kind == "hub":
            digest.update(f"{source} {path} {piece.column}\n".encode())
            continue
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(f"{source} {piece.kind} {piece.column} {size}\n".encode())
            if size <= most * BLOCK:
                while block := file.read(BLOCK):
                    digest.update(block)
                continue
            for number in range(most):
                file.seek((size - BLOCK) * number // (most - 1))
                digest.update(file.read(BLOCK))
    return digest.hexdigest()
