"""Test fetching models of the Hub, from a server on this machine that speaks its API."""

import json
import os
import subprocess
import sys

import pytest
from huggingface_hub.utils import WeakFileLock

from tests.hub_server import serve

RESOLVE = """
import sys
from ds_distill.models.folder import resolve_model_folder
from ds_distill.utils.errors import UserError
for name in sys.argv[1:]:
    try:
        print(resolve_model_folder(name, "--teacher"))
    except UserError as error:
        print(error)
"""


def add_model(folder, **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("README.md", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / name).write_text(f"{name} of {folder.name}")
    for name in ("pytorch_model.bin", "modeling.py", "tf_model.h5", "onnx/model.onnx", "model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(os.urandom(1000))
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    add_model(root / "acme" / "tiny", size=1)
    add_model(root / "acme" / "tiny@v2", size=2)
    (add_model(root / "acme" / "gated") / ".gated").touch()
    (add_model(root / "acme" / "secret") / ".private").touch()
    (add_model(root / "acme" / "pickled") / "model.safetensors").unlink()
    with serve(root) as server:
        yield server


def start(hub, tmp_path, *names, cache="home", **environment):
    variables = os.environ | hub.environment | {"HF_HOME": str(hub.root / cache)} | environment
    return subprocess.Popen(
        [sys.executable, "-c", RESOLVE, *names],
        cwd=tmp_path,
        env=variables | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def resolve(hub, tmp_path, *names, **environment):
    process = start(hub, tmp_path, *names, **environment)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.splitlines(), err


def test_what_a_model_needs_is_fetched_once_and_nothing_else(hub, tmp_path):
    (first, again, second), err = resolve(hub, tmp_path, "acme/tiny", "acme/tiny", "acme/tiny@v2")
    assert first == again and err.count("fetching acme/tiny (commit") == 1, "the second time it was in the cache"
    assert sorted(os.listdir(first)) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    for folder, repository in ((first, "tiny"), (second, "tiny@v2")):
        for name in os.listdir(folder):
            with open(f"{folder}/{name}", "rb") as file:
                assert file.read() == (hub.root / "acme" / repository / name).read_bytes()
    before = len(hub.requests)
    assert resolve(hub, tmp_path, "acme/tiny", "acme/tiny@v2")[0] == [first, second]
    assert resolve(hub, tmp_path, "acme/tiny", HF_HUB_OFFLINE="1")[0] == [first]
    assert len(hub.requests) == before, "a model in the cache needs no network"


def test_one_of_several_processes_fetches_while_the_others_wait_and_say_so(hub, tmp_path):
    def weights():
        return sum(line.startswith("GET") and "model.safetensors" in line for line in hub.requests)

    before, cache = weights(), hub.root / "shared"
    lock = cache / "hub" / ".locks" / "models--acme--tiny" / "fetch.lock"
    lock.parent.mkdir(parents=True)
    with WeakFileLock(lock):  # this test is the first process
        processes = [start(hub, tmp_path, "acme/tiny", cache="shared") for _ in range(3)]
        for process in processes:
            assert "another process is fetching acme/tiny" in process.stderr.readline()
        assert weights() == before
    folders = {process.communicate()[0] for process in processes}
    assert len(folders) == 1 and (cache / "hub" / "models--acme--tiny").is_dir()
    assert weights() == before + 1


def test_a_model_that_cannot_be_fetched_is_refused_with_the_remedy(hub, tmp_path):
    (tmp_path / "here").mkdir()
    expected = (
        ("acme/none", "shows no such model; correct the name, or, if the model is private, log in"),
        ("acme/secret", "if the model is private, log in with `hf auth login`, or set HF_TOKEN"),
        ("acme/gated", "access is restricted; accept its conditions at http://127.0.0.1"),
        ("acme/tiny@v9", "acme/tiny has no revision 'v9'; its revisions are listed at http://127.0.0.1"),
        ("acme/pickled", "the repository has only pytorch_model.bin, and such weights are not loaded; give a model"),
        ("here/typo", "no such folder in here/; correct the path, or fetch the Hub's model of that name once with"),
        ("/no/such/place", "no such folder; correct the path"),
        ("a--b/c", "not a name of the Hugging Face Hub; correct it"),
    )
    lines, _ = resolve(hub, tmp_path, *(name for name, _ in expected))
    for line, (name, words) in zip(lines, expected, strict=True):
        assert line.startswith(f"--teacher {name}: ") and words in line


def test_a_token_opens_private_models(hub, tmp_path):
    (folder,), _ = resolve(hub, tmp_path, "acme/secret", HF_TOKEN="reads")
    assert os.path.isfile(f"{folder}/model.safetensors")


def test_without_a_network_the_error_says_where_to_fetch_the_model(hub, tmp_path):
    before = len(hub.requests)
    (line,), _ = resolve(hub, tmp_path, "acme/tiny", cache="empty", HF_HUB_OFFLINE="1")
    assert "the network is not used (--offline or HF_HUB_OFFLINE), run `hf download acme/tiny`" in line
    assert len(hub.requests) == before
    (line,), _ = resolve(hub, tmp_path, "acme/tiny@v2", cache="empty", HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in line and "`hf download acme/tiny --revision v2`" in line


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    (hub.root / "file").touch()
    (line,), _ = resolve(hub, tmp_path, "acme/tiny", cache="file")
    assert f"the Hugging Face cache {hub.root / 'file' / 'hub'} cannot be written (Not a directory)" in line


def test_an_estimate_fetches_nothing(hub, tmp_path):
    before = len(hub.requests)
    done = subprocess.run(
        [sys.executable, "-m", "ds_distill", "estimate", "--teacher", "acme/tiny"],
        cwd=tmp_path,
        env=os.environ | hub.environment | {"HF_HOME": str(hub.root / "none"), "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "`hf download acme/tiny config.json`" in done.stderr
    assert len(hub.requests) == before
