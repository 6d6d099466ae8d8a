"""Prepare text in the form of a pair task: [CLS] a sentence [SEP] the rest of its paragraph [SEP].

    python -m benchmarks.data.pairs --tokenizer TEACHER --corpus FILE… --output TOKENS

Each line of the text, a paragraph, is one sequence, as with data.mode = lines, and a separator
stands after its first sentence. `ds-distill distill --tokens TOKENS --data.mode lines
--data.sequence_length N` trains on it. Compared with a student of plain text, it shows whether
such pairs help with tasks of pairs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.harness.cli import count, user_errors
from ds_distill.data import worker
from ds_distill.data.packing import LinePacker
from ds_distill.data.prepare import Preparation
from ds_distill.data.tokenizer import load_tokenizer
from ds_distill.models.folder import resolve_model_folder
from ds_distill.utils.console import log

ENDS = (".", "?", "!")
SHORTEST = 5  # tokens; an initial or a number with a point is no sentence


class PairPacker(LinePacker):
    """A packer of lines with a separator after the first sentence of each.

    Attributes:
        ends: The ids that end a sentence.
    """

    ends: Sequence[int] = ()

    def add(self, lines: Sequence[np.ndarray], characters: Sequence[int]) -> None:
        """Append the ids of lines."""
        super().add([self.separate(line) for line in lines], characters)

    def separate(self, line: np.ndarray) -> np.ndarray:
        """Return the ids of a line with a separator after its first sentence; a single sentence stays as it is."""
        ends = np.flatnonzero(np.isin(line[:-1], self.ends))
        ends = ends[ends >= SHORTEST - 1]
        return np.insert(line, ends[0] + 1, self.sep) if len(ends) else line


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data.pairs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokenizer", required=True, help="folder of the teacher")
    parser.add_argument("--corpus", required=True, nargs="+", help="files or folders of text")
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--length", type=count, default=256, help="maximum number of tokens per sequence (default 256)")
    parser.add_argument("--heldout-fraction", type=float, default=0.02, help="as data.heldout_fraction (default 0.02)")
    args = parser.parse_args()
    with user_errors("benchmarks.data.pairs"):
        tokenizer = load_tokenizer(resolve_model_folder(args.tokenizer, "--tokenizer"))
        PairPacker.ends = [
            number for mark in ENDS if (number := tokenizer.convert_tokens_to_ids(mark)) != tokenizer.unk_token_id
        ]
        preparation = Preparation(
            args.corpus,
            tokenizer,
            args.output,
            mode="lines",
            sequence_length=args.length,
            heldout_fraction=args.heldout_fraction,
            seed=0,
        )
        with mock.patch.object(worker, "LinePacker", PairPacker):
            manifest = preparation.run(workers=1)  # in this process
        log(f"{args.output}: {manifest['blocks']['train']:,} sequences of {manifest['real_tokens']['train']:,} tokens")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
