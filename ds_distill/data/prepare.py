"""Preparation of a corpus: many workers, on one host or on many, turn it into shards of token sequences on disk.

The prepared folder is complete or absent, memory use is flat, and an interrupted run resumes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ds_distill.data.assemble import assemble, piece_folder
from ds_distill.data.duplicates import COPIES, HASHES, write_later_copies
from ds_distill.data.fingerprint import content_fingerprint
from ds_distill.data.parts import Part, describe_parts
from ds_distill.data.pool import work_on_pieces
from ds_distill.data.remote import corpus_file, file_state
from ds_distill.data.sources import split_inputs
from ds_distill.data.token_files import MAX_LENGTH
from ds_distill.data.tokenizer import plain_backend, special_ids, vocabulary_size
from ds_distill.data.worker import EncodingSpec
from ds_distill.utils.errors import UserError
from ds_distill.utils.locks import try_lock

MODES = ("packed", "lines")
REPORT_VERSION = 3  # version of the report that a finished piece writes


def prepare(
    inputs: list[str], tokenizer, output: Path, *, workers: int = 0, progress=lambda done, total: None, **settings
) -> dict[str, Any]:
    """Tokenize the sources `inputs` into the folder `output` and return its manifest.

    The arguments are those of `Preparation` and of `Preparation.run`.
    """
    return Preparation(inputs, tokenizer, output, **settings).run(workers, progress)


class Preparation:
    """The preparation of a corpus: its pieces, the rules, and the folder in which the work is done.

    The result has the files of `token_files`, token_counts.npy (int64 [V], of the train split),
    tokenizer/ and manifest.json. It is made in a sibling folder, which takes the name `output` once
    it is complete. The finished pieces lie there too until then, so the disk needs room for the
    tokens twice. The result depends neither on the number of workers nor on whether the parts were
    prepared by one call or by many.

    A document is held out by a hash of (seed, text) alone, so adding documents never moves others.
    Where that leaves one split empty and the other with two sequences or more, the last sequence
    changes sides.

    In the manifest, `characters` tells what became of every character that was read, and `remarks`
    holds what is worth a line to the user.

    Args:
        inputs: The sources; see `sources.split_inputs`.
        tokenizer: A fast tokenizer of transformers.
        output: The folder to write.
        mode: "packed" (full blocks) or "lines" (each line is a sequence).
        drop_duplicates: Whether a document that occurred before in the corpus is left out. The
            corpus is then read twice.

    Raises:
        UserError: If a setting is out of range, or an input does not exist.
    """

    def __init__(
        self,
        inputs: list[str],
        tokenizer,
        output: Path,
        *,
        mode: str = "packed",
        sequence_length: int,
        heldout_fraction: float,
        seed: int,
        column: str = "text",
        streaming: bool = True,
        drop_duplicates: bool = False,
    ):
        self.inputs, self.tokenizer, self.output = inputs, tokenizer, replaceable(output)
        _check(self.output, tokenizer, mode, sequence_length, heldout_fraction)
        self.pieces = split_inputs(inputs, column=column, streaming=streaming)
        self.spec = EncodingSpec(
            plain_backend(tokenizer).to_str(),
            vocabulary_size(tokenizer),
            special_ids(tokenizer),
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.unk_token_id,
            mode,
            sequence_length,
            heldout_fraction,
            seed,
            drop_duplicates,
        )
        self.building = self.output.parent / f".{self.output.name}.building"

    def run(self, workers: int = 0, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Prepare the whole corpus and return the manifest.

        After an interruption the same call keeps the finished pieces, whoever made them, and
        continues with the others.

        Args:
            workers: Number of processes; 0 means one per core.
            progress: Called with the bytes read and the total bytes, which are 0 where a hub data
                set does not tell.

        Raises:
            UserError: If the corpus has no token, a file is damaged, or another process prepares
                the same folder.
        """
        with self._locked(alone=True):
            self._resume_or_reset()
            self._find_duplicates(range(len(self.pieces)), workers, progress)
            self._tokenize(range(len(self.pieces)), workers, progress)
            return self._assemble()

    def run_part(
        self, part: Part, workers: int = 0, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> dict[str, int]:
        """Prepare one part, while other processes, on any host that sees the folder, prepare others.

        Where duplicates are dropped, the first call for a part reads its documents' hashes alone,
        unless all other parts have done so. A second call then does the rest.

        Returns:
            The numbers of pieces in this part, of those of the corpus that are left, and of those
            whose documents are not hashed yet.

        Raises:
            UserError: If a file is damaged, or the folder is being made of something else.
        """
        with self._locked(alone=False):
            self._join()
            (self.building / f"parts-{part.parts}").touch()  # tells `assemble` how many there are
            numbers = [number for number in range(len(self.pieces)) if part.holds(number)]
            unhashed = self._find_duplicates(numbers, workers, progress)
            if not unhashed:
                self._tokenize(numbers, workers, progress)
            return {"pieces": len(numbers), "pieces_left": len(self._left()), "pieces_unhashed": unhashed}

    def assemble(self) -> dict[str, Any]:
        """Make the folder of parts that are all prepared, and return its manifest.

        Raises:
            UserError: If parts are missing, or the corpus has no token.
        """
        with self._locked(alone=True):
            if (self.building / "plan.json").is_file():
                self._join()
            if left := self._left():
                raise UserError(f"{self.output}: {self._describe_missing(left)}, then --assemble again")
            return self._assemble()

    def _find_duplicates(self, numbers, workers: int, progress: Callable[[int, int], None]) -> int:
        """Hash the documents of pieces and, once all of the corpus are hashed, find which to drop.

        Nothing is done where none is dropped, or all are found. It returns how many pieces are not
        hashed yet.
        """
        if not self.spec.drop_duplicates or (self.building / COPIES).is_dir():
            return 0
        hashes = self.building / HASHES
        hashes.mkdir(exist_ok=True)
        files = [hashes / f"{piece_folder(self.building, n).name}.npy" for n in range(len(self.pieces))]
        work_on_pieces({files[n]: self.pieces[n] for n in numbers}, self.spec.seed, workers, progress)
        unhashed = sum(not file.is_file() for file in files)
        if not unhashed:
            write_later_copies(files, self.building / COPIES)
        return unhashed

    def _tokenize(self, numbers, workers: int, progress: Callable[[int, int], None]) -> None:
        pieces = {piece_folder(self.building, number): self.pieces[number] for number in numbers}
        work_on_pieces(pieces, self.spec, workers, progress)

    def _assemble(self) -> dict[str, Any]:
        content = content_fingerprint(self.pieces)
        manifest = assemble(self.inputs, self.pieces, content, self.building, self.spec, self.tokenizer)
        publish(self.building / "data", self.output)
        shutil.rmtree(self.building)
        return manifest

    def _left(self) -> list[int]:
        """Return the numbers of the pieces that are not finished."""
        return [n for n in range(len(self.pieces)) if not piece_folder(self.building, n).is_dir()]

    def _describe_missing(self, left: list[int]) -> str:
        marks = sorted(self.building.glob("parts-*"), key=lambda file: file.stat().st_mtime_ns)
        if not marks:
            return "no part of it has been prepared; run prepare with --part 1/N to N/N"
        where = describe_parts(left, int(marks[-1].name.removeprefix("parts-")))
        return f"{len(left):,} of {len(self.pieces):,} pieces are missing; run prepare with {where}"

    @contextlib.contextmanager
    def _locked(self, alone: bool) -> Iterator[None]:
        """Keep others from the folder in which the work is done; calls for parts do not keep each other out."""
        self.building.mkdir(parents=True, exist_ok=True)
        with (self.building / "lock").open("a+", encoding="utf-8") as lock:
            try_lock(lock, self.output, lambda: "another process", shared=not alone)
            yield

    def _plan(self) -> str:
        """Return what the finished pieces depend on."""
        state = {path: file_state(corpus_file(path)) for path in {p.path: 0 for p in self.pieces if p.kind != "hub"}}
        return json.dumps([REPORT_VERSION, [asdict(piece) for piece in self.pieces], state, asdict(self.spec)])

    def _resume_or_reset(self) -> None:
        """Keep the finished pieces of an interrupted call with the same sources and settings.

        The pieces of any other call are removed, and so is what calls that were killed have left.
        """
        file, plan = self.building / "plan.json", self._plan()
        same = file.is_file() and file.read_text(encoding="utf-8") == plan
        for old in self.building.iterdir():
            if old.is_dir() and (not same or old.suffix == ".partial"):
                shutil.rmtree(old)
        if not same:
            for mark in self.building.glob("parts-*"):
                mark.unlink()
            file.write_text(plan, encoding="utf-8")

    def _join(self) -> None:
        """Join the calls that prepare other parts, where they have the same sources and settings."""
        file, plan = self.building / "plan.json", self._plan()
        if not file.is_file():
            mine = self.building / f"plan-{uuid.uuid4().hex}"
            mine.write_text(plan, encoding="utf-8")
            try:
                os.link(mine, file)
            except FileExistsError:  # Another host was faster.
                pass
            except OSError:  # The file system has no hard links.
                mine.replace(file)
            mine.unlink(missing_ok=True)
        if file.read_text(encoding="utf-8") != plan:
            raise UserError(
                f"{self.output}: parts of other text, or with other settings, lie in {self.building}; repeat their "
                "command, remove that folder, or choose another --output"
            )


def _check(output: Path, tokenizer, mode: str, sequence_length: int, heldout_fraction: float) -> None:
    if mode not in MODES:
        raise UserError(f"data.mode = {mode}: must be {' or '.join(MODES)}")
    if sequence_length < 8:
        raise UserError(f"data.sequence_length = {sequence_length}: must be at least 8 ([CLS] and [SEP] take two)")
    if sequence_length > MAX_LENGTH:
        raise UserError(f"data.sequence_length = {sequence_length}: must be at most {MAX_LENGTH}")
    if not 0 <= heldout_fraction <= 1:
        raise UserError(f"data.heldout_fraction = {heldout_fraction}: must be between 0 and 1")
    others = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id}
    if tokenizer.pad_token_id is None or None in others or tokenizer.pad_token_id in others:
        raise UserError(
            "the tokenizer must have [CLS], [SEP] and mask tokens, and a padding token that is none of them; use the "
            "tokenizer of a BERT-like encoder"
        )
    if output.exists() and not (output.is_dir() and ((output / "manifest.json").exists() or not any(output.iterdir()))):
        raise UserError(
            f"{output}: already exists and is not prepared data; choose another output folder, or remove it"
        )


def replaceable(output: Path) -> Path:
    """Return the path of a folder that can be replaced by a finished one, links followed.

    Raises:
        UserError: It cannot, because it is a mount point, or the folder that this process is in.
    """
    folder = Path(os.path.realpath(output))
    problem = "a mount point" if folder.is_mount() else "the current folder" if folder == Path.cwd() else ""
    if problem:
        raise UserError(
            f"{output}: {problem}, which the finished folder cannot replace; choose a folder in it, such as "
            f"{Path(output) / 'tokens'}"
        )
    return folder


def publish(finished: Path, output: Path) -> None:
    """Give the finished folder its name; earlier prepared data stays there until the moment before."""
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    finished.rename(output)
    shutil.rmtree(old, ignore_errors=True)
