import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from ds_distill.data.tokenizer import train_wordpiece
from tests.end_to_end.slurm import Slurm, why_not
from tests.start import ds_distill


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder with text, and a tiny BERT teacher with its tokenizer."""
    folder = tmp_path_factory.mktemp("world")
    words = (
        "the small model reads what a large one wrote and keeps most of it because both see every word of text".split()
    )
    g = torch.Generator().manual_seed(0)
    lines = [" ".join(words[int(i)] for i in torch.randint(len(words), (60,), generator=g)) for _ in range(300)]
    (folder / "text.txt").write_text("\n\n".join(lines))
    tokenizer = train_wordpiece(lines, 256, folder / "teacher")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertForMaskedLM(config).save_pretrained(folder / "teacher")
    assert ds_distill("--help").returncode == 0  # loads the libraries, since tests time what they start
    return folder


@pytest.fixture(scope="session")
def common(world):
    return [
        "--corpus",
        world / "text.txt",
        "--data.sequence_length",
        32,
        "--data.heldout_fraction",
        0.05,
        "--training.global_batch_size",
        8,
        "--training.micro_batch_size",
        4,
        "--training.max_tokens",
        2560,
        "--training.precision",
        "fp32",
    ]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory):
    """A Slurm of two nodes; its tests take minutes."""
    if reason := why_not():
        pytest.skip(reason)
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()
