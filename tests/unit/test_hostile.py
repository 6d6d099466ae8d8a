"""Test folders, texts and recipes that are malicious or simply wrong.

Nothing executes, nothing is written elsewhere, memory stays bounded, and the answer is one
sentence.
"""

import gzip
import json
import os
import pickle
import resource
import struct
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ds_distill.cli.arguments import SECTIONS, build_recipe
from ds_distill.cli.parser import build_parser
from ds_distill.data.readers import read
from ds_distill.data.sources import split_inputs
from ds_distill.data.tokenizer import load_tokenizer, train_wordpiece
from ds_distill.exporters.model import load_source
from ds_distill.finetune.heads import load_for_task
from ds_distill.models.folder import resolve_model_folder
from ds_distill.models.loading import load_masked_lm
from ds_distill.tasks.catalog import get_task
from ds_distill.utils.errors import UserError
from tests.start import ROOT
from tests.tiny import save_encoder
from tests.unit.models.test_teacher import tiny_bert, tiny_roberta

LOADERS = (load_masked_lm, load_source, lambda path: load_for_task(path, get_task("rte"), "model", tuned=False))


class Payload:
    """An object that creates `mark` when it is unpickled."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.fixture
def folder(tmp_path):
    tiny_bert().save_pretrained(tmp_path / "model")
    train_wordpiece(["the small model reads what a large one wrote"] * 3, 256, tmp_path / "tokenizer")
    for file in (tmp_path / "tokenizer").iterdir():
        file.rename(tmp_path / "model" / file.name)
    return tmp_path / "model"


def change(file, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.promise(
    "Model folders that mean harm: nothing executes, nothing is read from elsewhere, "
    "nothing is allocated that is not there"
)
def test_pickled_weights_are_never_read(folder, tmp_path):
    mark = tmp_path / "executed"
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    load_masked_lm(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled weights are not loaded"):
        load_masked_lm(str(folder))
    assert not mark.exists()


@pytest.mark.promise(
    "Model folders that mean harm: nothing executes, nothing is read from elsewhere, "
    "nothing is allocated that is not there"
)
def test_a_folders_own_code_is_never_run(folder, tmp_path):
    mark = tmp_path / "executed"
    (folder / "evil.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    )
    change(folder / "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]})
    load_masked_lm(str(folder))
    load_tokenizer(folder)
    assert not mark.exists()


def header(tensors: dict, length: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.promise(
    "Model folders that mean harm: nothing executes, nothing is read from elsewhere, "
    "nothing is allocated that is not there"
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        header({}, 2**60),
        header({}, 99_000_000),
        header({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header(
            {key: {"dtype": "F32", "shape": [4], "data_offsets": [at, at + 16]} for key, at in (("x", 0), ("y", 8))},
            data=b"\0" * 24,
        ),
        header({"x": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}, data=b"\0" * 16),
        header({"x": {"dtype": "EVIL", "shape": [4], "data_offsets": [0, 16]}}, data=b"\0" * 16),
    ],
)
def test_lying_tensor_headers(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    for load in LOADERS:
        with pytest.raises(UserError):
            load(str(folder))


@pytest.mark.promise(
    "Model folders that mean harm: nothing executes, nothing is read from elsewhere, "
    "nothing is allocated that is not there"
)
@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/tmp/outside.safetensors", "sub/../../outside.safetensors"]
)
def test_an_index_does_not_lead_out_of_its_folder(folder, name):
    outside = folder.parent / "outside.safetensors"
    (folder / "model.safetensors").rename(outside)
    weights = {key: name.replace("/tmp", str(folder.parent)) for key in load_file(outside)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    with pytest.raises(UserError, match="outside"):
        load_masked_lm(str(folder))


@pytest.mark.promise(
    "Model folders that mean harm: nothing executes, nothing is read from elsewhere, "
    "nothing is allocated that is not there"
)
@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 2**30},
        {"vocab_size": 10**12},
        {"num_hidden_layers": 10**9},
        {"intermediate_size": -1},
        {"hidden_size": "many"},
        {"num_attention_heads": 0},
        {"max_position_embeddings": 10**11},
    ],
)
def test_a_config_that_asks_for_more_than_there_is(folder, changes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change(folder / "config.json", **changes)
    for load in LOADERS:
        with pytest.raises(UserError):
            load(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


@pytest.mark.promise(
    "Model folders that mean harm: nothing executes, nothing is read from elsewhere, "
    "nothing is allocated that is not there"
)
@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
        {"quantization_config": "none"},
        {"quantization_config": {}},
        {"dtype": "foo"},
        {"id2label": ["a"]},
        {"model_type": ["bert"]},
        {"num_hidden_layers": "2"},
        {"num_hidden_layers": None},
    ],
)
def test_a_config_of_another_form(folder, changes):
    change(folder / "config.json", **changes)
    for load in LOADERS:
        with pytest.raises(UserError, match="config.json|model_type"):
            load(str(folder))


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("albert", {"num_hidden_groups": 0}, "num_hidden_groups = 0: must be 1 to num_hidden_layers"),
        ("albert", {"num_hidden_groups": 3}, "num_hidden_groups = 3: must be"),
        ("albert", {"num_hidden_groups": "1"}, "config.json cannot be used"),
        ("albert", {"inner_group_num": 2}, "inner_group_num = 2: only one layer in each group"),
        ("albert", {"embedding_size": 32}, "disagree on the shape of .*albert.embeddings"),
        ("electra", {"embedding_size": 32}, "config.json"),
        ("electra", {"embedding_size": -1}, "embedding_size = -1: must be a whole number, 1 or more"),
        ("electra", {"embedding_size": 2**30}, "config.json describes .* parameters, but"),
        (
            "modernbert",
            {"num_attention_heads": 32},
            "num_attention_heads = 32: each head has 1 dimensions, and positions turn pairs",
        ),
    ],
)
def test_sizes_of_embeddings_and_groups_that_do_not_fit_the_weights(tmp_path, family, changes, said):
    change(save_encoder(family, tmp_path) / "config.json", **changes)
    with pytest.raises(UserError, match=said):
        load_masked_lm(str(tmp_path))


@pytest.mark.promise(
    "Model folders that mean harm: nothing executes, nothing is read from elsewhere, "
    "nothing is allocated that is not there"
)
@pytest.mark.parametrize("named", ["someone/kernel", "flash_attention_2"])
def test_a_kernel_that_a_config_names_is_not_fetched(folder, named):
    """transformers would look for it on the hub, and would run the code that it finds there."""
    change(folder / "config.json", attn_implementation=named, return_dict=False)
    loaded = [load(str(folder)) for load in LOADERS]
    assert [getattr(model, "model", model).config._attn_implementation for model in loaded] == ["sdpa", "eager", "sdpa"]
    assert loaded[0](torch.tensor([[5, 6]])).logits.shape[:2] == (1, 2)


def test_a_roberta_without_a_padding_piece(tmp_path):
    tiny_roberta().save_pretrained(tmp_path)
    change(tmp_path / "config.json", pad_token_id=None)
    with pytest.raises(UserError, match="config.json cannot be used"):
        load_masked_lm(str(tmp_path))


def test_the_home_of_nobody():
    for reader in (lambda path: resolve_model_folder(path), lambda path: split_inputs([path]), load_tokenizer):
        with pytest.raises(
            UserError, match="~nobody-of-this-name/x: Could not determine home directory; write the full path"
        ):
            reader("~nobody-of-this-name/x")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "\0" * 50, '{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [["b", "c"]]}}']
)
def test_a_broken_tokenizer(folder, file, content):
    (folder / file).write_text(content)
    try:
        load_tokenizer(folder)
    except UserError:
        pass


READ = """
import sys
from ds_distill.data.readers import read
from ds_distill.data.sources import split_inputs
from ds_distill.utils.memory import peak_resident
before = peak_resident()
count = longest = 0
for piece in split_inputs([sys.argv[1]]):
    for document in read(piece):
        count, longest = count + 1, max(longest, len(document.text))
print(count, longest, (peak_resident() - before) // 2**20)
"""


@pytest.mark.promise("Input that is not text, endless lines, archive bombs: counted or refused, in bounded memory")
def test_an_archive_bomb_and_a_line_without_end(tmp_path):
    """The file has 300 MB in one line and takes 300 kB on disk."""
    with gzip.open(tmp_path / "bomb.txt.gz", "wb", compresslevel=6) as file:
        for _ in range(300):
            file.write(b"a" * 10**6)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "bomb.txt.gz")], env=environment, capture_output=True, text=True
    )
    count, longest, grown = map(int, done.stdout.split())
    assert count >= 3000 and longest <= 100_000
    assert grown < 150, f"{grown} MiB for a document of 300 MB"


@pytest.mark.promise("Input that is not text, endless lines, archive bombs: counted or refused, in bounded memory")
def test_rows_that_unpack_to_gigabytes(tmp_path):
    """One row of jsonl has 300 MB, and 256 rows of a parquet file of less than a kilobyte have 512 MB."""
    with gzip.open(tmp_path / "bomb.jsonl.gz", "wb", compresslevel=1) as file:
        for part in (b'{"text": "', *[b"a" * 10**6] * 300, b'"}\n{"text": "kept"}\n'):
            file.write(part)
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 256, pyarrow.int8()), ["a" * 2_000_000])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1000
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    count, longest, grown = map(int, done.stdout.split())
    assert count == 1 + 256 * 20 and longest <= 100_000
    assert grown < 400, f"{grown} MiB for rows of 300 MB and 512 MB"


@pytest.mark.promise("Input that is not text, endless lines, archive bombs: counted or refused, in bounded memory")
def test_text_that_is_none(tmp_path):
    rows = [b"\xff\xfe\xfd" * 1000, b"x" * 10_000_000, b"caf\xc3\xa9", b"<script>alert(1)</script>", b'{"a": "b"}']
    (tmp_path / "t.txt").write_bytes(b"\n\n".join(rows))
    parsed = [document for piece in split_inputs([str(tmp_path / "t.txt")]) for document in read(piece)]
    assert "café" in [document.text for document in parsed] and any(document.bad_utf8 for document in parsed)
    (tmp_path / "nul.txt").write_bytes(b"\0" * 1000)
    with pytest.raises(UserError, match="not text"):
        split_inputs([str(tmp_path / "nul.txt")])
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "one"}\n\0\0\0\n{"text": 5}\n')
    with pytest.raises(UserError, match="t.jsonl"):
        [document for piece in split_inputs([str(tmp_path / "t.jsonl")]) for document in read(piece)]


SETTINGS = [f"{room}.{key}" for room, kind in SECTIONS.items() for key in kind.__dataclass_fields__]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from(["auto", "../../etc/passwd", "!!python/object:os.system"]),
)


@pytest.fixture(scope="module")
def parser():
    return build_parser()


@pytest.mark.promise("Malicious and wrong recipes are answered with one sentence")
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(
    changes=st.dictionaries(
        st.sampled_from(SETTINGS) | st.text(min_size=1, max_size=12), VALUES, min_size=1, max_size=3
    )
)
def test_any_recipe_is_taken_or_answered(tmp_path, parser, record_property, changes):
    rooms: dict = {}
    for key, value in changes.items():
        room, _, name = key.partition(".")
        if name and isinstance(rooms.setdefault(room, {}), dict):
            rooms[room][name] = value
        else:
            rooms[room] = value
    (tmp_path / "r.yaml").write_text(yaml.dump(rooms))
    record_property("recipes", 1)
    try:
        options = parser.parse_args(["distill", "--config", str(tmp_path / "r.yaml"), "--output", "x"])["distill"]
        build_recipe(options).check()
    except UserError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.promise("Malicious and wrong recipes are answered with one sentence")
@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.mkdir [MARK]",
        "training: !!python/name:os.system",
        "a: &a [*a]",
        "{" * 500,
        "\0",
        "- - -",
        "x: " + "[" * 300 + "]" * 300,
        "corpus: {0: null}",
        "config: {0: null}",
        "config.0: null",
    ],
)
def test_a_recipe_that_is_no_recipe(tmp_path, text):
    mark = tmp_path / "executed"
    (tmp_path / "r.yaml").write_text(text.replace("MARK", str(mark)))
    with pytest.raises(UserError):
        build_parser().parse_args(["distill", "--config", str(tmp_path / "r.yaml")])
    assert not mark.exists()
