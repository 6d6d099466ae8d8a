import atexit
import json
import os
import subprocess
import sys
import tempfile
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


SERVER = """
import json, os, sys, traceback
from ds_distill.cli import main
requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
for line in requests:
    words, out, err = json.loads(line)
    for number, file in ((1, out), (2, err)):
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, number)
        os.close(descriptor)
    try:
        code = main(words)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    print(json.dumps(code), file=replies, flush=True)
"""
_servers: list[subprocess.Popen] = []


def ds_distill(*arguments, fresh: bool = False, **environment) -> subprocess.CompletedProcess:
    """Run a command as a user would; unless `fresh` or in another environment, in one process that runs command after command: importing the
    libraries takes longer than most commands."""
    words = [str(word) for word in arguments]
    if fresh or environment:
        command = [sys.executable, "-m", "ds_distill", *words]
        return subprocess.run(command, cwd=ROOT, env=environment_of(**environment), text=True, capture_output=True, timeout=300)
    if not _servers or _servers[0].poll() is not None:
        command = [sys.executable, "-c", SERVER]
        _servers[:] = [subprocess.Popen(command, cwd=ROOT, env=environment_of(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)]
        atexit.register(_servers[0].kill)
    server = _servers[0]
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("out", "err")]
        print(json.dumps([words, *files]), file=server.stdin, flush=True)
        code = json.loads(server.stdout.readline())
        out, err = (Path(file).read_text() for file in files)
    return subprocess.CompletedProcess(words, code, out, err)


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
