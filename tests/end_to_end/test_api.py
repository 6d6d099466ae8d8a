"""The Python interface does what the commands do, in a script as a user writes it."""

import json
import os
import re
import subprocess
import sys

import pytest
from transformers import pipeline

from ds_distill import api
from ds_distill.recipe import Recipe
from ds_distill.utils.errors import UserError
from tests import patience
from tests.start import ROOT, environment_of, start_ranks

SMALL = """
recipe.data.sequence_length = 32
recipe.data.workers = 2
recipe.training.global_batch_size = recipe.training.micro_batch_size = 4
recipe.training.precision = "fp32"
"""


def run_script(text: str, folder) -> subprocess.CompletedProcess:
    (folder / "script.py").write_text(text, encoding="utf-8")
    return patience.run([sys.executable, "script.py"], cwd=folder, env=environment_of() | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("page", ["README.md", pytest.param("docs/getting_started.md", marks=pytest.mark.long)])
def test_the_example_of_a_page_runs(page, world, tmp_path):
    """Without a guard around it, although two processes read the text."""
    text = (ROOT / page).read_text(encoding="utf-8")
    example = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "from ds_distill" in block)
    text = (world / "text.txt").read_text()
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(text)
    example = example.replace("1_000_000", "1_000").replace('"FILE"', '"a.txt", "b.txt"')
    example = re.sub('"(DIR|TEACHER)"', repr(str(world / "teacher")), example)
    example = re.sub(r"^\w+ = distill\(", lambda call: SMALL + call[0], example, flags=re.M)
    done = run_script(example, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    figure, export = done.stdout.split()[-2:]
    summary = json.loads((tmp_path / "RUN" / "summary.json").read_text())
    shown = summary["kept" if "summary.kept" in example else "heldout_mask_loss"]
    assert figure == str(shown) and export == "RUN/export" == summary["export"]
    assert len(pipeline("fill-mask", str(tmp_path / export))("the [MASK] model")) == 5


RUN_NOTEBOOK = """
import sys
import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=None, startup_timeout=1800, kernel_name="python3").execute()
nbformat.write(notebook, "executed.ipynb")
"""


TOKENS = {"250_000": "20_000", "100_000": "10_000"}  # of its two runs, in the quick test


@pytest.mark.parametrize("tokens", [TOKENS, pytest.param({}, marks=pytest.mark.long)], ids=["fewer tokens", "as it is"])
def test_the_notebook_runs(tmp_path, tokens):
    """In a kernel, all cells in order, and what they print is what the runs have measured."""
    pytest.importorskip("nbclient", reason="it runs the notebook; requirements-dev.txt names it")
    pytest.importorskip("ipykernel", reason="it runs the notebook; requirements-dev.txt names it")
    text = (ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8")
    for whole, fewer in tokens.items():
        assert text.count(whole) == 1
        text = text.replace(whole, fewer)
    notebook = tmp_path / "notebook.ipynb"
    notebook.write_text(text, encoding="utf-8")
    done = patience.run([sys.executable, "-c", RUN_NOTEBOOK, notebook], cwd=tmp_path, env=environment_of())
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads((tmp_path / "executed.ipynb").read_text())["cells"]
    printed = [
        "".join("".join(output["text"]) for output in cell.get("outputs", ()) if output.get("name") == "stdout")
        for cell in cells
    ]
    folder = tmp_path / "runs" / "quickstart"
    teacher, student = (json.loads((folder / name / "summary.json").read_text()) for name in ("teacher", "student"))
    for summary in (teacher, student):
        assert f"held-out loss {summary['heldout_mlm_loss']:.2f} nats" in "".join(printed)
    assert student["heldout_mlm_loss"] < student["start_heldout_mlm_loss"], "it has learned"
    assert student["parameters"] < teacher["parameters"]
    (guesses,) = (text for text, cell in zip(printed, cells, strict=True) if "fill_mask(" in "".join(cell["source"]))
    assert len(guesses.splitlines()) == 5


@pytest.mark.long
def test_pretrain_evaluate_and_export(world, tmp_path):
    script = f"""
import os
from ds_distill import Recipe, evaluate, export, pretrain
from ds_distill.distributed.launch_environment import RANK_VARIABLES
of_ranks = lambda: {{name: os.environ.get(name) for name in RANK_VARIABLES}}
before = of_ranks()
recipe = Recipe()
{SMALL}
recipe.training.max_tokens = 500
sizes = {{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}}
places = {{"tokenizer": {str(world / "teacher")!r}, "corpus": [{str(world / "text.txt")!r}], "output": "run"}}
made = pretrain(recipe, model=sizes, **places)
rows = evaluate([made.export, {str(world / "teacher")!r}], recipe=recipe, tokens="run/tokens")
formats = export(made.export, formats=["torch-export"])
assert before == of_ranks(), "as it was"
print(made.steps, [row.heldout_mlm_loss for row in rows], *formats["formats"])
"""
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith("4 [") and done.stdout.split()[-1] == "torch-export"


def test_the_ranks_of_a_script_are_one_job_in_each_of_its_calls(world, tmp_path):
    ranks = start_ranks(2, "tests.end_to_end.api_worker", world / "teacher", world / "text.txt", tmp_path)
    done = [rank.wait() for rank in ranks]
    assert [one.returncode for one in done] == [0, 0], done[0].stderr[-3000:] + done[1].stderr[-3000:]
    first, second = (json.loads(one.stdout.splitlines()[-1]) for one in done)
    assert first["formats"] == ["torch-export"] and second["formats"] == [], "the first rank's work"
    assert {**first, "formats": 0} == {**second, "formats": 0}
    (states,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    assert list(states.rglob("*pp_rank_1_*optim_states.pt")), "both ranks have trained one student"


def test_a_mistake_is_a_user_error(world, tmp_path):
    before = dict(os.environ)
    with pytest.raises(UserError, match="no such file or folder"):
        api.distill(Recipe(), teacher=world / "teacher", corpus=[tmp_path / "missing.txt"], output=tmp_path / "out")
    with pytest.raises(UserError, match="training.epochs = 0"):
        recipe = Recipe()
        recipe.training.epochs = 0
        api.distill(recipe, teacher=world / "teacher", corpus=[world / "text.txt"], output=tmp_path / "out")
    with pytest.raises(UserError, match="tokenizer is missing"):
        api.pretrain(Recipe(), model={"hidden_size": 8}, corpus=[world / "text.txt"], output=tmp_path / "out")
    assert {name: value for name, value in os.environ.items() if "RANK" in name} == {
        name: value for name, value in before.items() if "RANK" in name
    }


def test_what_the_package_offers_is_there_whatever_is_imported_first():
    import ds_distill
    import ds_distill.cli.app
    import ds_distill.exporters.formats
    import ds_distill.pipeline

    for name in ds_distill.__all__:
        assert callable(getattr(ds_distill, name)) and getattr(ds_distill, name).__doc__, name
    with pytest.raises(AttributeError, match="has no attribute 'distil'"):
        getattr(ds_distill, "dis" + "til")
