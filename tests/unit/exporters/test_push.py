"""Test uploads to the Hub, with a server on this machine that speaks its API."""

import os
import subprocess
import sys

import pytest

from tests.hub_server import serve

PUSH = """
import os, sys
from pathlib import Path
from ds_distill.exporters.push import make_repository, upload
from ds_distill.utils.errors import UserError
for words in sys.argv[1:]:
    os.environ["HF_TOKEN"], name, private, folder = words.split()
    try:
        full = make_repository(name, private == "private")
        print(upload(Path(folder), full) if folder != "none" else full)
    except UserError as error:
        print(error)
"""


@pytest.fixture
def hub(tmp_path):
    with serve(tmp_path / "hub") as server:
        yield server


def push(hub, *cases, **environment):
    done = subprocess.run(
        [sys.executable, "-c", PUSH, *cases],
        env=os.environ | hub.environment | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_repository_that_cannot_be_written_is_refused_with_the_remedy(hub):
    (hub.root / "ada" / "public").mkdir(parents=True)
    cases = {
        "writes acme/new public none": "acme/new",
        "writes new private none": "ada/new",
        "writes ada/new private none": "ada/new",
        "writes google/new public none": "the token's user ada has no rights to google; choose a name that begins with "
        "one of ada/, acme/",
        "writes ada/public private none": "--private was given, but ada/public is a public repository; choose another",
        "writes a..b public none": "Cannot have -- or .. in repo_id: 'ada/a..b'.; choose another name",
        "reads new public none": "the Hugging Face Hub refuses the token (status 403); log in with `hf auth login`",
        "wrong new public none": "the Hugging Face Hub refuses the token (status 401); log in with `hf auth login`",
    }
    for (case, expected), line in zip(cases.items(), push(hub, *cases), strict=True):
        name = case.split()[1]
        assert line == expected or (line.startswith(f"--push_to_hub {name}: ") and expected in line), line
    assert (hub.root / "ada" / "new" / ".private").exists() and not (hub.root / "acme" / "new" / ".private").exists()
    (line,) = push(hub, "writes new public none", HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in line and line.endswith("leave --push_to_hub out, and upload later with `hf upload`")


def test_a_folder_is_uploaded_without_what_a_command_keeps_in_it(hub, tmp_path):
    model = tmp_path / "model"
    (model / "onnx").mkdir(parents=True)
    card = '---\nlibrary_name: transformers\n---\n\n# distill\n\n```python\nname = "."  # this folder\n```\n'
    (model / "README.md").write_text(card)
    for name in ("config.json", "summary.json", ".lock", "model.safetensors", "onnx/model.onnx"):
        (model / name).write_text(name)
    assert push(hub, f"writes student public {model}") == [f"{hub.environment['HF_ENDPOINT']}/ada/student"]
    repository = hub.root / "ada" / "student"
    uploaded = {str(file.relative_to(repository)) for file in repository.rglob("*") if file.is_file()}
    assert uploaded == {"README.md", "config.json", "model.safetensors", "onnx/model.onnx"}
    assert (repository / "model.safetensors").read_text() == "model.safetensors"
    assert 'name = "ada/student"\n' in (repository / "README.md").read_text()

    (repository / ".broken").touch()
    (line,) = push(hub, f"writes student public {model}")
    assert "the upload failed (" in line and f"but the model is complete in {model}; upload it later" in line
    assert line.endswith(f"`hf upload ada/student {model} .`")
