import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from ds_distill.data.tokenizer import train_wordpiece

ROOT = Path(__file__).parents[2]


def environment_of(**changes) -> dict[str, str]:
    """A lone CPU process's environment."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"} | changes
    return {key: value for key, value in variables.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def ds_distill(*arguments, **environment) -> subprocess.CompletedProcess:
    """Run a command as a user would."""
    command = [sys.executable, "-m", "ds_distill", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment_of(**environment), text=True, capture_output=True, timeout=300)


def ds_distill_each(commands: list[list]) -> list[tuple[int, str]]:
    """(exit status, standard error) of each command, one after the other in one process: starting takes longer than being refused."""
    program = (
        "import json, sys\nfrom ds_distill.cli import main\n"
        "for command in json.load(sys.stdin):\n    code = main(command)\n    print(f'\\nended with {code}', file=sys.stderr, flush=True)\n"
    )
    commands = [[str(word) for word in command] for command in commands]
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment_of(), text=True, capture_output=True, timeout=300,
                          input=json.dumps(commands))  # fmt: skip
    pieces = re.split(r"\nended with (\d+)\n", done.stderr)
    assert len(pieces) == 2 * len(commands) + 1, done.stderr[-3000:]
    return list(zip(map(int, pieces[1::2]), pieces[:-1:2], strict=True))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with text, and a tiny BERT teacher with its tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    words = "the small model reads what a large one wrote and keeps most of it because both see every word of text".split()
    g = torch.Generator().manual_seed(0)
    lines = [" ".join(words[int(i)] for i in torch.randint(len(words), (60,), generator=g)) for _ in range(300)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    tokenizer = train_wordpiece(lines, 256, folder / "teacher")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64,
                        max_position_embeddings=32)  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder / "teacher")
    return folder


@pytest.fixture(scope="session")
def common(world):
    return ["--corpus", world / "text.txt", "--data.sequence_length", 32, "--data.heldout_fraction", 0.05, "--training.global_batch", 8,
            "--training.micro_batch", 4, "--training.max_tokens", 2560]  # fmt: skip
