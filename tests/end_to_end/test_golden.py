"""The first twenty steps of the recipe of the demo from scratch are pinned.

A change of the order of the data, the masks, the schedule or a loss changes them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from ds_distill.data.tokenizer import train_wordpiece
from ds_distill.exporters.parity import SAMPLE
from tests.start import ROOT, ds_distill

GOLDEN, GOLDEN_MATCH = (Path(__file__).with_name(f"{name}.json") for name in ("golden", "golden_match"))
STEPS, MATCH_STEPS = 20, 6
MATCH = [
    "--losses.match",
    "[{loss: relation, heads: 4, layers: last}, {loss: relation, of: query_key}, {loss: attention, layers: uniform}, "
    "{loss: mse, of: [embeddings, hidden], layers: span_ends, normalize: true}, {loss: cosine, weight: 3}]",
    "--data.attend_across_documents",
    "false",
]


def compute_curve(folder: Path, steps: int = STEPS, options: Sequence[str] = ()) -> list[dict[str, float]]:
    """Distill a student from a teacher of random weights, in fp32 on the CPU; return the losses of each step."""
    lines = [line for line in SAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    size = len(train_wordpiece(lines, 512, folder / "teacher"))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.2,  # larger than usual, so that the teacher's guesses differ from token to token
    )
    BertForMaskedLM(config).save_pretrained(folder / "teacher")
    (folder / "text.txt").write_text("\n\n".join(lines * 20) + "\n", encoding="utf-8")
    words = ["run", "--config", ROOT / "ds_configs" / "demo_from_scratch.yaml", "--teacher", folder / "teacher"]
    words += ["--corpus", folder / "text.txt", "--output", folder / "run", "--data.sequence_length", 64]
    words += [
        "--training.global_batch_size",
        8,
        "--training.micro_batch_size",
        4,
        "--training.max_tokens",
        8 * 64 * steps,
        *options,
    ]
    words += ["--training.precision", "fp32", "--training.device", "cpu", "--training.optimizer", "torch"]
    done = ds_distill(*words, "--training.compile", "off")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "run" / "curves.json").read_text(encoding="utf-8"))["history"]


def test_the_first_twenty_steps_are_what_they_were(tmp_path):
    """To pin them anew after a change that is meant: `python -m tests.end_to_end.test_golden`."""
    compare(compute_curve(tmp_path), GOLDEN, STEPS)


def test_the_first_steps_with_each_term_of_a_match_are_what_they_were(tmp_path):
    compare(compute_curve(tmp_path, MATCH_STEPS, MATCH), GOLDEN_MATCH, MATCH_STEPS)


def compare(curve: list[dict[str, float]], file: Path, steps: int) -> None:
    golden = json.loads(file.read_text(encoding="utf-8"))
    assert len(curve) == len(golden) == steps
    for actual, pinned in zip(curve, golden, strict=True):
        assert (actual["step"], actual["tokens"]) == (pinned["step"], pinned["tokens"])
        # processors add up in different orders
        assert actual == pytest.approx(pinned, rel=1e-3)


if __name__ == "__main__":
    import tempfile

    for file, steps, options in ((GOLDEN, STEPS, []), (GOLDEN_MATCH, MATCH_STEPS, MATCH)):
        with tempfile.TemporaryDirectory() as folder:
            rows = [json.dumps(row) for row in compute_curve(Path(folder), steps, options)]
        file.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
        print(f"written to {file}")
