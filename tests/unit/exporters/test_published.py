"""Test what an export writes beside its formats.

It is a complete model, an encoder from which embedding servers start, and no file names anything of
this machine.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import onnx
import onnx_ir
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    pipeline,
)

import ds_distill
from ds_distill.cli import main
from ds_distill.compression.prune_model import prune_model
from ds_distill.exporters import format_table
from ds_distill.exporters.formats import FORMATS, export_formats
from ds_distill.exporters.model import load_source
from ds_distill.exporters.onnx import save_graph
from ds_distill.exporters.published import publish_model
from ds_distill.models.folder import resolve_model_folder
from ds_distill.models.layer_shapes import LayerShape
from ds_distill.models.saving import save_model_folder
from ds_distill.utils.errors import UserError
from tests.start import ROOT, environment_of
from tests.tiny import save_encoder

RUNNABLE = [name for name in FORMATS if not FORMATS[name].unavailable_reason()]


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return save_encoder("distilbert", tmp_path_factory.mktemp("here") / "student")


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    """All formats of a student in another folder, exported as a user would, by its absolute path."""
    output = tmp_path_factory.mktemp("there") / "out"
    assert main(["export", "--model", str(student), "--output", str(output), "--format", *RUNNABLE]) == 0
    return output


@pytest.fixture
def traced_before(exported, reuse_graph):
    """The student's graph, which the export of all formats has traced, is not traced again."""
    reuse_graph(exported / "onnx" / "model.onnx")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A BERT with a pooler and a head for a task."""
    folder = save_encoder("bert", tmp_path_factory.mktemp("here") / "classifier")
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(folder)
    config.num_labels, config.finetuning_task, config.num_hidden_layers = 3, "mnli", 1
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def publish(model, output, encoder=False):
    """Run the part of export_formats that precedes the formats."""
    output.mkdir(exist_ok=True)
    publish_model(load_source(str(model), "encoder" if encoder else None), output, model.name)
    return output


def strings_in(file) -> bytes:
    if file.suffix == ".pt2":
        with zipfile.ZipFile(file) as parts:
            return b"".join(parts.read(name) for name in parts.namelist())
    return file.read_bytes()


def test_an_export_elsewhere_is_a_model(student, exported, monkeypatch):
    """The export loads by its folder's name and answers like the model it was made from."""
    monkeypatch.chdir(exported)
    there, info = AutoModelForMaskedLM.from_pretrained(".", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    inputs = AutoTokenizer.from_pretrained(".")("some text of it", return_tensors="pt")
    assert torch.equal(there(**inputs).logits, AutoModelForMaskedLM.from_pretrained(student)(**inputs).logits)
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert (
        len(pipeline("fill-mask", ".")("a [MASK] here " + "and more " * 200, tokenizer_kwargs={"truncation": True}))
        == 5
    )
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n") and "## Formats" in card


def test_no_file_names_a_folder_of_this_machine(student, exported):
    folders = [
        str(student.parent),
        str(exported.parent),
        str(ROOT),
        sys.prefix,
        os.path.dirname(torch.__file__),
        "site-packages",
    ]
    for file in exported.rglob("*"):
        strings = strings_in(file) if file.is_file() else b""
        assert not [folder for folder in folders if folder.encode() in strings], file
    assert json.loads((exported / "summary.json").read_text())["output"] == "."


def test_all_files_have_one_mode(exported):
    assert len({file.stat().st_mode & 0o777 for file in exported.rglob("*") if file.is_file()}) == 1


PLAIN = """import sys, torch
found = torch.export.load("torch/model.pt2").module()(input_ids=torch.ones(3, 7, dtype=torch.int64), \
attention_mask=torch.ones(3, 7, dtype=torch.int64))
assert type(found) is dict and "transformers" not in sys.modules
assert list(found) == ["logits"] and found["logits"].shape[:2] == (3, 7)
"""
RUN_EACH = """import runpy, sys
for file in sys.argv[1:]:
    print("of", file)
    runpy.run_path(file)
"""


@pytest.mark.parametrize(
    "names",
    [
        # of the examples, only that of a program could depend on what an earlier one has imported
        ["torch-export", "onnx", "openvino-int8"],
        *(pytest.param([name], marks=pytest.mark.long) for name in ("torch-export", "onnx", "openvino-int8")),
    ],
    ids=" then ".join,
)
def test_a_program_loads_with_torch_alone_and_examples_run(exported, names):
    """A user's process has not imported what this process has."""
    files = [f"example_{name.replace('-', '_')}.py" for name in names]
    for file in files:
        assert "return_token_type_ids" not in (exported / file).read_text(), "the tokenizer beside it knows"
    done = subprocess.run(
        [sys.executable, "-c", (PLAIN if len(names) > 1 else "") + RUN_EACH, *files],
        cwd=exported,
        env=environment_of(HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed = re.split(r"^of .*\n", done.stdout, flags=re.MULTILINE)[1:]
    assert len(printed) == len(files) and all(text.strip() for text in printed)


def test_answers_keep_their_order_in_a_program(student, tmp_path):
    """The program returns a dictionary of starts and ends."""
    from transformers import AutoModelForQuestionAnswering

    source = load_source(str(student))
    torch.manual_seed(0)
    source.model.config.n_layers = 1
    model = AutoModelForQuestionAnswering.from_config(source.model.config).eval()
    save_model_folder(model, source.tokenizer, tmp_path)
    export_formats(str(tmp_path), ["torch-export"], tmp_path, text=[])
    inputs = {"input_ids": torch.arange(12).view(2, 6), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    actual, expected = torch.export.load(tmp_path / "torch" / "model.pt2").module()(**inputs), model(**inputs)
    assert list(actual) == ["start_logits", "end_logits"]
    for name, value in actual.items():
        torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_16_bit_are_written_in_32(student, tmp_path, dtype):
    """transformers 4 converts them to fp32 while it loads them and 5 does not, so one folder would give two answers."""
    shutil.copytree(student, tmp_path / "half")
    AutoModelForMaskedLM.from_pretrained(student).to(dtype).save_pretrained(tmp_path / "half")
    publish(tmp_path / "half", tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").dtype == torch.float32


def test_weights_of_another_model_are_left_alone(student, tmp_path):
    """The other model has the same config and tokenizer, like a second fine-tuning of one encoder."""
    other = shutil.copytree(student, tmp_path / "other")
    weights = {name: value + 1 for name, value in load_file(other / "model.safetensors").items()}
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    publish(student, tmp_path / "out")
    with pytest.raises(UserError, match=r"contains another model's model\.safetensors; choose another --output"):
        export_formats(str(other), ["onnx"], tmp_path / "out", text=[])
    assert not (tmp_path / "out" / "onnx").exists()


def test_what_an_earlier_version_has_exported_gets_its_weights(student, tmp_path):
    """The earlier version left a config and a tokenizer without weights."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(student / name, tmp_path / name)
    publish(student, tmp_path)
    written, weights = (AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (tmp_path, student))
    assert written.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in written.items())


def test_a_card_keeps_the_license(student, traced_before, tmp_path):
    source = shutil.copytree(student, tmp_path / "model")
    (source / "README.md").write_text(
        "---\nlicense: apache-2.0\ntags: [x]\n---\n\n# Its own card\n\n## Formats\n\noutdated\n"
    )
    export_formats(str(source), ["onnx"], tmp_path / "out", text=[])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "# Its own card" in card and "license: apache-2.0" in card and "outdated" not in card
    assert "onnx/model.onnx" in card
    publish(source, tmp_path / "encoder", encoder=True)
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert card.startswith(
        "---\nlibrary_name: transformers\npipeline_tag: feature-extraction\nlicense: apache-2.0\ntags:\n"
        "- sentence-transformers\n---\n\n# model\n"
    )
    (source / "README.md").write_text("---\nlicense: [\n---\n\nnot YAML\n")
    publish(source, tmp_path / "third")
    assert (
        (tmp_path / "third" / "README.md")
        .read_text()
        .startswith("---\nlibrary_name: transformers\npipeline_tag: fill-mask\n---\n")
    )


def test_a_card_names_the_model_of_the_hub_that_was_exported(student, traced_before, tmp_path):
    source = shutil.copytree(student, tmp_path / "models--acme--tiny" / "snapshots" / "abc123")
    (source / "README.md").write_text("---\nlicense: mit\n---\n\n# Tiny\n")
    export_formats(str(source), ["onnx"], tmp_path / "out", text=[])
    told = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert told == {"license": "mit", "base_model": "acme/tiny"}
    export_formats(str(source), ["onnx-int8"], tmp_path / "out", text=[])
    told = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert told == {"license": "mit", "base_model": "acme/tiny", "base_model_relation": "quantized"}


def test_an_encoder_is_what_its_config_says(classifier, tmp_path):
    """A classifier's encoder has neither its class nor its labels, by which servers choose, but keeps its pooler."""
    export_formats(str(classifier), ["onnx"], tmp_path, text=[], encoder=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["BertModel"] and not {"id2label", "label2id", "finetuning_task"} & config.keys()
    model, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, BertModel) and not info["missing_keys"] and not info["unexpected_keys"]
    inputs = AutoTokenizer.from_pretrained(tmp_path)("a text", return_tensors="pt")
    expected = BertForSequenceClassification.from_pretrained(classifier).bert(**inputs)
    torch.testing.assert_close(model(**inputs).pooler_output, expected.pooler_output)
    run = FORMATS["onnx"].load(tmp_path / "onnx" / "model.onnx")(
        {name: value.numpy() for name, value in inputs.items()}
    )
    torch.testing.assert_close(torch.from_numpy(run[0]), expected.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_the_encoder_of_a_sparse_embedder_is_not_declared_one_of_sentences(student, tmp_path):
    """Its embeddings come from the head, which is left out, so no modules are written."""
    shutil.copytree(student, tmp_path / "sparse")
    kinds = ("MLMTransformer", "SpladePooling")
    modules = [{"path": "", "type": f"sentence_transformers.sparse_encoder.models.{kind}"} for kind in kinds]
    (tmp_path / "sparse" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "out").mkdir()
    publish(tmp_path / "sparse", tmp_path / "out", encoder=True)
    assert not (tmp_path / "out" / "modules.json").exists()
    assert "sentence-transformers" not in ModelCard.load(tmp_path / "out" / "README.md").data.to_dict().get("tags", [])


def test_an_encoder_has_what_sentence_transformers_reads(student, tmp_path):
    publish(student, tmp_path, encoder=True)
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert [(module["type"], module["path"]) for module in modules] == [
        ("sentence_transformers.models.Transformer", ""),
        ("sentence_transformers.models.Pooling", "1_Pooling"),
    ]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 32 and [key for key, value in pooling.items() if value is True] == [
        "pooling_mode_mean_tokens",
        "include_prompt",
    ]
    assert json.loads((tmp_path / "sentence_bert_config.json").read_text()) == {
        "max_seq_length": 64,
        "do_lower_case": False,
    }
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config["architectures"],
        config["hidden_size"],
        config["num_hidden_layers"],
        config["num_attention_heads"],
    ) == (
        ["DistilBertModel"],
        32,
        2,
        2,
    )
    assert len(pipeline("feature-extraction", str(tmp_path))("a text")[0][0]) == 32


@pytest.mark.parametrize("heads", [0, 1])
@pytest.mark.parametrize("card", ["", "---\nlicense: mit\n---\n\n# Mine\n"])
@pytest.mark.parametrize("encoder", [True, False])
def test_a_model_of_no_stock_class_says_how_it_loads(student, tmp_path, monkeypatch, heads, card, encoder):
    """sentence-transformers would give its layers random weights."""
    model = AutoModelForMaskedLM.from_pretrained(student).eval()
    prune_model(model, [LayerShape(heads, 8), LayerShape(2, 64)], "first")
    save_model_folder(model, load_source(str(student)).reader, tmp_path / "pruned")
    (tmp_path / "pruned" / "README.md").write_text(card)
    out = publish(tmp_path / "pruned", tmp_path / "out", encoder)
    assert not list(out.glob("*sentence*")) and not (out / "modules.json").exists()
    text = (out / "README.md").read_text()
    assert "sentence-transformers" not in text and ("# Mine" in text) == (bool(card) and not encoder)
    (code,) = re.findall("```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(out)
    scope, ids = {}, torch.arange(5, 15)[None]
    exec(code, scope)
    assert torch.equal(scope["model"](ids)[0], (model.base_model if encoder else model)(ids)[0])
    assert torch.equal(ds_distill.load(out)(ids)[0], scope["model"](ids)[0])
    again = publish(out, tmp_path / "again", encoder)
    assert len(re.findall("```python", (again / "README.md").read_text())) == 1


OLD, NEW = "sentence_transformers.models.", "sentence_transformers.sentence_transformer.modules."
POOLINGS = {
    "release 5's names": ({"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": False}, {"cls_token"}),
    "several": ({"word_embedding_dimension": 32, "pooling_mode": ["cls", "max"]}, {"cls_token", "max_tokens"}),
    "flags": (
        {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"cls_token"},
    ),
}


@pytest.mark.parametrize("kind", POOLINGS)
def test_a_sentence_transformers_folder_keeps_its_pooling(student, tmp_path, kind):
    source = shutil.copytree(student, tmp_path / "source")
    given, expected = POOLINGS[kind]
    package = NEW if "release 5" in kind else OLD
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    (source / "modules.json").write_text(
        json.dumps(
            [
                {
                    "idx": i,
                    "name": str(i),
                    "path": path,
                    "type": package + name.lower() * (package == NEW) + "." * (package == NEW) + name,
                }
                for i, (path, name) in enumerate(modules)
            ]
        )
    )
    for folder, settings in (
        ("1_Pooling", given),
        ("2_Dense", {"in_features": 32, "out_features": 8}),
        ("3_Normalize", {}),
    ):
        (source / folder).mkdir()
        (source / folder / "config.json").write_text(json.dumps(settings))
    save_file({"linear.weight": torch.ones(8, 32)}, source / "2_Dense" / "model.safetensors")
    (source / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24, "do_lower_case": True}))
    (source / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "q: "}, "__version__": {"x": "1"}})
    )
    out = tmp_path / "out"
    publish(source, out, encoder=True)
    pooling = json.loads((out / "1_Pooling" / "config.json").read_text())
    assert {
        key.removeprefix("pooling_mode_") for key, value in pooling.items() if key.startswith("pooling_mode") and value
    } == expected
    assert pooling["include_prompt"] is given.get("include_prompt", True)
    assert [module["type"] for module in json.loads((out / "modules.json").read_text())] == [
        OLD + name for _, name in modules
    ]
    assert load_file(out / "2_Dense" / "model.safetensors")["linear.weight"].shape == (8, 32)
    assert json.loads((out / "sentence_bert_config.json").read_text()) == {"max_seq_length": 24, "do_lower_case": True}
    assert json.loads((out / "config_sentence_transformers.json").read_text()) == {"prompts": {"query": "q: "}}
    assert len({file.stat().st_mode & 0o777 for file in out.rglob("*") if file.is_file()}) == 1


def test_a_pickled_module_is_left_out_and_a_strange_one_reaches_no_path(student, tmp_path, capsys):
    source = shutil.copytree(student, tmp_path / "source")
    (source / "2_Dense").mkdir()
    (source / "2_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    listed = [{"path": "", "type": OLD + "Transformer"}, {"path": "2_Dense", "type": OLD + "Dense"}]
    (source / "modules.json").write_text(json.dumps(listed))
    publish(source, tmp_path / "out", encoder=True)
    assert "2_Dense has pickled weights, which are not read" in capsys.readouterr().err
    assert [module["path"] for module in json.loads((tmp_path / "out" / "modules.json").read_text())] == [
        "",
        "1_Pooling",
    ]
    (source / "modules.json").write_text(json.dumps([listed[0], {"path": "../../2_Dense", "type": "x./../../../evil"}]))
    publish(source, tmp_path / "again", encoder=True)
    assert [module["path"] for module in json.loads((tmp_path / "again" / "modules.json").read_text())] == [
        "",
        "1_Pooling",
    ]
    assert not (tmp_path / "evil").exists()


@pytest.fixture
def cached(student, tmp_path, monkeypatch):
    """The model acme/small in the hub's cache, and an empty working folder."""
    snapshot = tmp_path / "hub" / "models--acme--small" / "snapshots" / ("0" * 40)
    shutil.copytree(student, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return snapshot


def test_a_folder_without_weights_does_not_hide_the_hubs_model(traced_before, cached, tmp_path):
    """Earlier exports of the model have left such a folder under its name."""
    assert resolve_model_folder("acme/small") == cached
    here = tmp_path / "work" / "acme" / "small"
    here.mkdir(parents=True)
    shutil.copy(cached / "config.json", here)
    assert resolve_model_folder("acme/small") == cached
    publish_model(load_source("acme/small"), here, "small")
    export_formats("acme/small", ["onnx"], here, text=[])  # now exports the folder itself, which is a model
    assert resolve_model_folder("acme/small").resolve() == here and (here / "onnx" / "model.onnx").is_file()
    (tmp_path / "work" / "alone").mkdir()
    assert resolve_model_folder("alone").resolve() == tmp_path / "work" / "alone", (
        "none in the cache: what is wrong with the folder is said"
    )


@pytest.mark.parametrize("limit", [pytest.param(0, marks=pytest.mark.long), 50_000])
def test_weights_beyond_one_file_lie_beside_it(student, exported, tmp_path, monkeypatch, limit):
    """Weights go beside the file, as for a model beyond 2 GiB, which protobuf cannot write.

    A limit of 0 puts all weights there; 50,000 bytes puts those of the fp32 file there, but not
    those of the int8 file.
    """
    monkeypatch.setattr("ds_distill.exporters.onnx.LARGEST_FILE", limit)
    if limit:  # the graph is one that was traced before
        graph = onnx_ir.load(exported / "onnx" / "model.onnx")
        monkeypatch.setattr(format_table, "write_onnx", lambda _, file: save_graph(graph, file))
    summary = export_formats(str(student), ["onnx", "onnx-int8", "openvino-int8"], tmp_path, text=[])
    names = {file.name for file in (tmp_path / "onnx").iterdir()}
    assert "model.onnx_data" in names and ("model_quantized.onnx_data" in names) == (limit == 0)
    file = tmp_path / "onnx" / "model.onnx"
    onnx.checker.check_model(str(file))
    held = [
        entry for value in onnx.load(file, load_external_data=False).graph.initializer for entry in value.external_data
    ]
    assert {entry.value for entry in held if entry.key == "location"} == {"model.onnx_data"}
    beside = file.with_name("model.onnx_data").stat().st_size
    assert beside > 32 * 300 * 4 and summary["formats"]["onnx"]["megabytes"] * 1e6 == pytest.approx(
        file.stat().st_size + beside
    )
    moved = shutil.copytree(tmp_path / "onnx", tmp_path / "moved")
    inputs = {
        "input_ids": torch.ones(2, 5, dtype=torch.int64).numpy(),
        "attention_mask": torch.ones(2, 5, dtype=torch.int64).numpy(),
    }
    expected = load_source(str(student)).model(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits
    torch.testing.assert_close(
        torch.from_numpy(FORMATS["onnx"].load(moved / "model.onnx")(inputs)[0]), expected, rtol=1e-4, atol=1e-3
    )
    FORMATS["onnx-int8"].load(moved / "model_quantized.onnx")(inputs)
    assert len({file.stat().st_mode & 0o777 for file in (tmp_path / "onnx").iterdir()}) == 1
    if limit == 0:
        monkeypatch.undo()
        export_formats(str(student), ["onnx"], tmp_path, text=[])
        assert {file.name for file in (tmp_path / "onnx").iterdir()} == names - {"model.onnx_data"}, (
            "what lay beside an earlier file goes with it"
        )


def test_the_texts_compared_on_are_named_without_their_folders(student, traced_before, tmp_path):
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "some texts.txt").write_text(
        ("a text with enough words in it to be compared on , and more of them . \n\n") * 9
    )
    summary = export_formats(
        str(student), ["onnx"], tmp_path / "out", text=[str(tmp_path / "private" / "some texts.txt")]
    )
    assert summary["compared_on"].startswith("some texts.txt (9): 9 sequences, ")
    assert not [
        file for file in (tmp_path / "out").rglob("*") if file.is_file() and str(tmp_path).encode() in strings_in(file)
    ]
