"""Test the deployable formats: each is loaded by its own runtime and compared with PyTorch, and its example is run."""

import dataclasses
import json
import math
import runpy
import shutil

import numpy as np
import onnx
import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
)

from ds_distill.cli.parser import build_parser
from ds_distill.data.tokenizer import load_tokenizer, train_wordpiece
from ds_distill.exporters import format_table
from ds_distill.exporters.formats import FORMATS, _export_lock, export_formats, formats_table
from ds_distill.exporters.huggingface import export
from ds_distill.exporters.model import load_source
from ds_distill.exporters.onnx import OPSET
from ds_distill.exporters.parity import SAMPLE, compare, describe_texts, text_batches, torch_runner
from ds_distill.exporters.task_score import dev_score
from ds_distill.reporting.card_sections import MADE_WITH
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A DistilBERT folder with a tokenizer and weights so large that its outputs differ from token to token."""
    folder = tmp_path_factory.mktemp("student")
    tokenizer = train_wordpiece(SAMPLE.read_text().splitlines(), 400, folder)
    torch.manual_seed(0)
    model = DistilBertForMaskedLM(
        DistilBertConfig(
            vocab_size=len(tokenizer), dim=64, hidden_dim=128, n_heads=4, n_layers=2, max_position_embeddings=64
        )
    )
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(student, tmp_path_factory):
    """Return (output folder, summary) of all formats."""
    output = tmp_path_factory.mktemp("exported")
    return output, export_formats(
        str(student), [name for name in FORMATS if not FORMATS[name].unavailable_reason()], output, text=[]
    )


@pytest.fixture(scope="module")
def classifier(student, tmp_path_factory):
    """A BERT classifier of pairs with token types, and labeled examples."""
    folder = tmp_path_factory.mktemp("classifier")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(student / file, folder)
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=400,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
    )
    model = BertForSequenceClassification(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    lines = [line for line in SAMPLE.read_text().splitlines() if line][:12]
    rows = [
        {"sentence1": a, "sentence2": b[:60], "label": i % 3, "idx": i}
        for i, (a, b) in enumerate(zip(lines, lines[::-1], strict=True))
    ]
    (folder / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


RUNNABLE = [
    pytest.param(name, marks=pytest.mark.skipif(bool(reason), reason=str(reason)))
    for name in FORMATS
    for reason in [FORMATS[name].unavailable_reason()]
]


@pytest.mark.parametrize("name", RUNNABLE)
def test_each_format_runs_in_its_own_runtime_at_any_shape(exported, student, name):
    output, summary = exported
    assert summary["formats"][name]["positions"] > 100
    answers_agree(load_source(str(student)), output, name)


def allowed_error(name):
    """Return the largest difference from PyTorch that a format may have, as a share of the largest output."""
    return 1e-5 if FORMATS[name].exact else 0.5 if "int4" in name else 0.05


def answers_agree(source, output, name):
    """Compare a format's answers with PyTorch's at several shapes, also where there is padding."""
    run = FORMATS[name].load(output / FORMATS[name].file)
    for shape in ((1, 7), (3, 20), (2, 64)):
        ids = np.random.default_rng(0).integers(5, source.model.config.vocab_size, shape)
        inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        inputs["attention_mask"][-1, shape[1] // 2 :] = 0  # masked tokens must not matter
        inputs["attention_mask"][0] = 1
        if "token_type_ids" in source.inputs:
            inputs["token_type_ids"] = np.arange(ids.size).reshape(shape) % 2
        actual, expected = run(inputs)[0], torch_runner(source)(inputs)[0]
        real = inputs["attention_mask"] == 1
        error = np.abs(actual - expected)[real].max() / np.abs(expected)[real].max()
        assert error < allowed_error(name)
        if not FORMATS[name].exact:
            assert error > 1e-5, "not quantized at all"


@pytest.mark.long
def test_relative_positions_are_right_at_every_length(tmp_path):
    """Also beyond the length of the sequences that were traced."""
    model = save_encoder("deberta-v2", tmp_path / "model")
    names = [name for name in FORMATS if not FORMATS[name].unavailable_reason()]
    export_formats(str(model), names, tmp_path / "out", text=[])
    source = load_source(str(model))
    for name in names:
        run = FORMATS[name].load(tmp_path / "out" / FORMATS[name].file)
        for length in (1, 7, 20, 64):
            ids = np.random.default_rng(0).integers(5, 290, (2, length))
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            inputs["attention_mask"][1, 1 + length // 2 :] = 0
            actual, expected = run(inputs)[0], torch_runner(source)(inputs)[0]
            real = inputs["attention_mask"] == 1
            error = np.abs(actual - expected)[real].max() / np.abs(expected)[real].max()
            assert error < allowed_error(name), (name, length)


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_example_beside_it_runs(exported, name, monkeypatch, capsys):
    output, _ = exported
    monkeypatch.chdir(output)
    file = output / f"example_{name.replace('-', '_')}.py"
    assert len(file.read_text().splitlines()) == 3
    runpy.run_path(str(file))
    assert capsys.readouterr().out.strip()


def test_a_format_for_other_processors_is_refused(student, tmp_path, monkeypatch):
    monkeypatch.setitem(
        FORMATS, "onnx-int8-vnni", dataclasses.replace(FORMATS["onnx-int8-vnni"], unavailable_reason=lambda: "no VNNI")
    )
    with pytest.raises(
        UserError,
        match="onnx-int8-vnni cannot be checked on this machine: no VNNI; .*or choose the format without -vnni",
    ):
        export_formats(str(student), ["onnx-int8-vnni"], tmp_path / "out", text=[])
    assert not (tmp_path / "out").exists()


def test_the_onnx_file_says_what_it_is(exported):
    output, _ = exported
    model = onnx.load(output / "onnx" / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
    for value in (*model.graph.input, *model.graph.output):
        assert [axis.dim_param for axis in value.type.tensor_type.shape.dim][:2] == ["batch", "sequence"]
    assert str(SAMPLE.parents[2]) not in (output / "onnx" / "model.onnx").read_bytes().decode("latin-1"), (
        "paths of this machine in the file"
    )


def test_the_vocabulary_matrix_is_in_the_files_once(exported):
    """Embedding and projection share it: fp32 in one file, int8 in the others, with no second copy."""
    output, summary = exported
    table = 400 * 64
    kept = [
        entry for entry in onnx.load(output / "onnx" / "model.onnx").graph.initializer if np.prod(entry.dims) == table
    ]
    assert len(kept) == 1
    limits = {"onnx-int8": 0.45, "openvino-int8": 0.8, "onnx-int4": 0.4, "openvino-int4": 0.75}
    for name, most in limits.items():  # in so small a model, the graph itself has weight
        assert summary["formats"][name]["megabytes"] < most * summary["formats"]["onnx"]["megabytes"]
    large = [
        entry
        for entry in onnx.load(output / "onnx" / "model_quantized.onnx").graph.initializer
        if np.prod(entry.dims) == table
    ]
    assert [entry.data_type for entry in large] == [onnx.TensorProto.INT8]
    four = onnx.load(output / "onnx" / "model_q4.onnx").graph.initializer
    assert [list(entry.dims) for entry in four].count([400, 2, 16]) == 1 and table not in [
        np.prod(entry.dims) for entry in four
    ]


@pytest.fixture
def traced_before(exported, monkeypatch):
    """The student's graph, which the exports of all formats have traced, is not traced again."""
    graph = exported[0] / "onnx" / "model.onnx"
    monkeypatch.setattr(
        format_table,
        "write_onnx",
        lambda _, file: (file.parent.mkdir(parents=True, exist_ok=True), shutil.copy(graph, file)),
    )


def test_four_bits_that_reverse_the_choices_are_refused(student, traced_before, tmp_path, monkeypatch):
    """What was written before is recorded all the same."""
    monkeypatch.setitem(FORMATS, "onnx-int4", dataclasses.replace(FORMATS["onnx-int4"], least=1.01))
    with pytest.raises(
        UserError,
        match="--format onnx-int4: where PyTorch.* agree with it; at least .* % must; train the last steps with",
    ):
        export_formats(str(student), ["onnx", "onnx-int4"], tmp_path / "out", text=[])
    assert [file.name for file in (tmp_path / "out" / "onnx").iterdir()] == ["model.onnx"]
    assert list(json.loads((tmp_path / "out" / "formats.json").read_text())) == ["onnx"]
    assert "| onnx " in (tmp_path / "out" / "README.md").read_text()


def test_the_folder_has_what_loads_it_and_says_what_was_compared(exported):
    output, summary = exported
    assert {"config.json", "tokenizer.json", "README.md", "onnx", "openvino", "torch"} <= {
        file.name for file in output.iterdir()
    }
    assert not (output / ".partial").exists()
    card = (output / "README.md").read_text()
    assert "## Formats" in card and "model_quantized.onnx" in card and summary["compared_on"] in card


def test_a_fine_tuned_folder_keeps_its_dev_score(classifier, monkeypatch, capsys):
    """The folder is a BERT with token types, and the export goes into the folder itself."""
    summary = export_formats(
        str(classifier), ["onnx", "openvino-int8"], classifier, text=[], data=str(classifier / "dev.jsonl")
    )
    assert summary["head"] == "classification" and summary["inputs"] == [
        "input_ids",
        "attention_mask",
        "token_type_ids",
    ]
    row = summary["formats"]["onnx"]
    assert (
        row["dev_accuracy"] == row["dev_accuracy_pytorch"] and 0 <= row["dev_accuracy"] <= 1 and row["agreement"] == 1
    )
    assert (classifier / "onnx" / "model.onnx").is_file() and (classifier / "model.safetensors").is_file()
    monkeypatch.chdir(classifier)
    capsys.readouterr()
    runpy.run_path("example_onnx.py")
    assert capsys.readouterr().out.strip() in ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_number_is_exported_and_a_nan_is_no_agreement(student, tmp_path):
    """STS-B's head gives one number, so there is no top-1 prediction."""
    source = load_source(str(student))
    torch.manual_seed(2)
    config = source.model.config
    config.num_labels, config.problem_type, config.n_layers = 1, "regression", 1
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    row = export_formats(str(tmp_path), ["onnx"], tmp_path, text=[])["formats"]["onnx"]
    assert row["max_difference"] < 1e-4 and "agreement" not in row
    one = load_source(str(tmp_path))
    comparison = compare(
        one,
        lambda inputs: [np.full((len(inputs["input_ids"]), 1), np.nan, np.float32)],
        text_batches(one, [], sequences=4),
        "nan",
    )
    assert np.isnan(comparison["max_difference"])


def test_robertas_are_exported(tmp_path):
    """Positions begin after the padding's id, and the tokenizer does not give the token types."""
    tokenizer = train_wordpiece(SAMPLE.read_text().splitlines(), 400, tmp_path)
    torch.manual_seed(3)
    RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=66,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).save_pretrained(tmp_path)
    summary = export_formats(str(tmp_path), ["onnx", "onnx-int8"], tmp_path, text=[])
    assert summary["formats"]["onnx"]["agreement"] == 1


@pytest.mark.long
@pytest.mark.parametrize("family", ["mpnet", "albert", "electra", "modernbert"])
def test_a_bias_by_relative_position_and_embeddings_of_another_width_are_exported(family, tmp_path):
    """Every format answers as the model does, at any shape."""
    source = load_source(str(save_encoder(family, tmp_path / "model")))
    names = [name for name in FORMATS if not FORMATS[name].unavailable_reason()]
    summary = export_formats(str(tmp_path / "model"), names, tmp_path / "out", text=[])
    assert len(names) > 2 and summary["formats"]["onnx"]["agreement"] == 1
    for name in names:
        answers_agree(source, tmp_path / "out", name)


def test_another_models_folder_is_left_alone(student, traced_before, classifier, exported, tmp_path):
    with pytest.raises(UserError, match="contains another model's config.json"):
        export_formats(str(student), ["onnx"], classifier, text=[])
    with pytest.raises(UserError, match="choose another --output for the encoder"):
        export_formats(str(student), ["onnx"], student, text=[], encoder=True)
    output, _ = exported
    again = tmp_path / "again"
    shutil.copytree(output, again)
    export_formats(str(student), ["onnx"], again, text=[])
    card = (again / "README.md").read_text()
    assert all(name in card for name in FORMATS if not FORMATS[name].unavailable_reason()), (
        "what earlier exports have found stays"
    )
    (again / FORMATS["torch-export"].file).unlink()
    export_formats(str(student), ["onnx"], again, text=[])
    assert "| torch-export " not in (again / "README.md").read_text()


def test_the_score_is_the_tasks_own_and_squads_is_f1(student, classifier, tmp_path):
    from transformers import AutoConfig, BertForQuestionAnswering

    source = load_source(str(classifier))
    config = source.model.config
    config.finetuning_task, config.id2label = "mrpc", {0: "not_equivalent", 1: "equivalent"}
    source.model.classifier = torch.nn.Linear(32, 2)
    dev = tmp_path / "dev.tsv"  # GLUE's own form, in which a lone quotation mark is literal
    dev.write_text(
        "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
        + "".join(f'{i % 3 % 2}\t{i}\t{i}\t"one {i}\ttwo\n' for i in range(12))
    )
    assert set(dev_score(source, torch_runner(source), dev, "mrpc")) == {"f1"}
    read = []

    def first(inputs):  # always predicts label 0
        read.append(inputs["input_ids"].shape[1])
        return [np.eye(2)[np.zeros(len(inputs["input_ids"]), int)]]

    config.finetuning_task, source.tokenizer.model_max_length = "rte", 5
    rows = [{"sentence1": "a b c d e f", "sentence2": "g h i", "label": int(i % 4 == 0)} for i in range(12)]
    (tmp_path / "rte.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for names, accuracy in (
        (["entailment", "not_entailment"], 0.75),
        (["not_entailment", "entailment"], 0.25),
        (["LABEL_0", "LABEL_1"], 0.75),
    ):
        config.id2label = dict(enumerate(names))  # a pipeline looks at nothing else
        assert dev_score(source, first, tmp_path / "rte.jsonl", "rte") == {"accuracy": accuracy}
    assert set(read) == {5}, "as many tokens as a pipeline reads"
    source.tokenizer.model_max_length = 64
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(classifier)
    config.num_labels = 2
    BertForQuestionAnswering(config).save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    context = "village near the coast"
    first = context[
        : source.tokenizer(context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][0][1]
    ]
    question = {"id": "1", "question": "Where?", "answers": [{"text": first, "answer_start": 0}]}
    (tmp_path / "dev.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [question]}]}]})
    )
    summary = export_formats(str(tmp_path), ["onnx"], tmp_path, text=[], data=str(tmp_path / "dev.json"))
    row = summary["formats"]["onnx"]
    assert (
        0 <= row["dev_f1"] == row["dev_f1_pytorch"] <= 1 and "dev f1, PyTorch" in (tmp_path / "README.md").read_text()
    )

    def perfect(inputs):  # the answer is the context's first token
        starts = np.zeros(inputs["input_ids"].shape, np.float32)
        starts[:, inputs["token_type_ids"][0].argmax()] = 9
        return [starts, starts]

    assert dev_score(load_source(str(tmp_path)), perfect, tmp_path / "dev.json", "perfect") == {"f1": 1.0}


def test_exports_into_one_folder_do_not_mix(student, traced_before, tmp_path):
    with _export_lock(student), pytest.raises(UserError, match="in use by another export; wait"):
        export_formats(str(student), ["onnx"], student, text=[])
    export_formats(str(student), ["onnx"], tmp_path, text=[])
    with pytest.raises(
        UserError,
        match="contains files with the head masked-lm, but this export has the head encoder; choose another --output",
    ):
        export_formats(str(student), ["onnx"], tmp_path, text=[], encoder=True)
    export_formats(str(student), ["onnx"], tmp_path, text=[])


@pytest.mark.long
def test_an_encoder_gives_hidden_states(student, tmp_path):
    summary = export_formats(str(student), ["onnx"], tmp_path, text=[], encoder=True)
    run = FORMATS["onnx"].load(tmp_path / "onnx" / "model.onnx")
    assert summary["head"] == "encoder" and run(
        {"input_ids": np.ones((2, 9), np.int64), "attention_mask": np.ones((2, 9), np.int64)}
    )[0].shape == (
        2,
        9,
        64,
    )


def test_a_format_that_differs_is_not_published(student, traced_before, tmp_path, monkeypatch):
    broken = FORMATS["onnx"].__class__(
        **{
            **vars(FORMATS["onnx"]),
            "load": lambda file: lambda inputs: [np.zeros((*inputs["input_ids"].shape, 400), np.float32)],
        }
    )
    monkeypatch.setitem(FORMATS, "onnx", broken)
    with pytest.raises(RuntimeError, match="onnx: outputs differ"):
        export_formats(str(student), ["onnx"], tmp_path / "out", text=[])
    assert not (tmp_path / "out" / "onnx").exists() and not (tmp_path / "out" / ".partial").exists()


def test_mistakes_are_said(student, classifier, tmp_path):
    for arguments, words in (
        ((str(student), ["onx"]), "did you mean onnx"),
        ((str(tmp_path), ["onnx"]), "no config.json"),
        ((str(student), ["onnx"], "data"), "but labeled examples need a classification or question-answering head"),
    ):
        with pytest.raises(UserError, match=words):
            export_formats(
                *arguments[:2],
                tmp_path / "a",
                text=[],
                data=str(classifier / "dev.jsonl") if len(arguments) > 2 else None,
            )
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "other": 1}\n')
    with pytest.raises(UserError, match="a column `label` and one or two text columns are needed"):
        export_formats(str(classifier), ["onnx"], tmp_path / "b", text=[], data=str(tmp_path / "bad.jsonl"))


def test_agreement_counts_first_choices(student):
    source = load_source(str(student))
    batches = text_batches(source, [], sequences=8)
    masked = sum(int(batch.at.sum()) for batch in batches)
    share = masked / sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    assert 0.1 < share < 0.2 and all(
        (batch.inputs["input_ids"][batch.at] == source.tokenizer.mask_token_id).all() for batch in batches
    )
    exact = compare(source, torch_runner(source), batches, "same")
    assert (
        exact["clear_agreement"] == 1
        and 0 < exact["clear_positions"] <= masked
        and exact["loss"] == exact["loss_pytorch"] > 1
    )
    assert (
        exact["agreement"] == 1
        and exact["max_difference"] == 0
        and exact["positions"] == masked
        and exact["accuracy"] == exact["accuracy_pytorch"]
    )

    def half(inputs):  # predicts another token in every second sequence
        logits = torch_runner(source)(inputs)[0].copy()
        logits[::2, :, 7] = 1e4
        return [logits]

    wrong = sum(int(batch.at[::2].sum()) for batch in batches)
    assert (
        abs(compare(source, half, batches, "half")["agreement"] - (1 - wrong / masked)) < 0.02
    )  # the prediction may have been 7 before


def test_every_text_is_compared_and_the_card_says_how_much_of_each(student, tmp_path, capsys):
    line = "a text with enough words in it to be compared on , and more of them ."
    for name in "abcdefg":
        (tmp_path / f"{name}.txt").write_text("\n\n".join([line] * 9 if name < "g" else ["short"]))
    texts = [str(tmp_path / f"{name}.txt") for name in "agb"]
    source = load_source(str(student))
    batches = text_batches(source, texts, sequences=5)
    tokens = sum(int(batch.inputs["attention_mask"].sum()) for batch in batches)
    assert describe_texts(texts, batches) == f"a.txt (3), b.txt (2): 5 sequences, {tokens:,} tokens"
    assert "g.txt: none of it is used, because its documents have fewer than 12 tokens" in capsys.readouterr().err
    texts = [str(tmp_path / f"{name}.txt") for name in "abcdef"] + [str(tmp_path / "a.txt")]
    said = describe_texts(texts, text_batches(source, texts, sequences=64))
    assert said.startswith("a.txt (9), b.txt (9), c.txt (9), d.txt (9), e.txt (9), 2 more: 63 sequences, ")


def test_long_documents_give_several_sequences_where_there_are_few(student, tmp_path):
    line = "a text with enough words in it to be compared on , and more of them . "
    (tmp_path / "long.txt").write_text(line * 50)
    (tmp_path / "short.txt").write_text("\n\n".join([line] * 4))
    source, texts = load_source(str(student)), [str(tmp_path / "long.txt"), str(tmp_path / "short.txt")]
    whole = source.tokenizer(line * 50, add_special_tokens=False)["input_ids"]
    batches = text_batches(source, texts, sequences=9, length=40)
    assert [origin for batch in batches for origin in batch.origins] == [0, 1, 1, 1, 1, 0, 0, 0, 0]
    parts = [batch.labels[row] for batch in batches for row, origin in enumerate(batch.origins) if origin == 0]
    assert np.concatenate([part[1:-1] for part in parts]).tolist() == whole[: 5 * 38], "which follow each other"


def test_of_no_clear_choice_there_is_no_share(classifier):
    """The head's outputs are close to each other, and 0 of 0 is neither all nor nothing."""
    source = load_source(str(classifier))
    source.model.classifier.weight.data *= 1e-3
    source.model.classifier.bias.data.zero_()
    comparison = compare(source, torch_runner(source), text_batches(source, [], sequences=8), "same")
    assert comparison["agreement"] == 1 and comparison["clear_positions"] == 0 and "clear_agreement" not in comparison
    assert "agreement where clear" not in formats_table({"onnx": comparison})


@pytest.mark.parametrize(
    "labels, message",
    [
        ([0, -1], "label -1 of example 2: the model's labels are 0 to 2, for its classes"),
        ([4, 0], "label 4 of example 1"),
        ([0.5, 1], "label 0.5"),
        ([0, math.nan], "label nan"),
        (["good", "bad"], "label 'good' of example 1: not one of the model's labels"),
    ],
)
def test_labels_that_a_model_cannot_have_are_no_score(classifier, tmp_path, labels, message):
    (tmp_path / "dev.jsonl").write_text("\n".join(json.dumps({"text": "a film", "label": label}) for label in labels))
    source = load_source(str(classifier))
    with pytest.raises(UserError, match=message):
        dev_score(source, torch_runner(source), tmp_path / "dev.jsonl", "score")


@pytest.mark.parametrize("file, content", [("formats.json", "{"), ("formats.json", "[]"), ("config.json", "{")])
def test_a_damaged_file_of_the_output_is_said(student, tmp_path, file, content):
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=f"{file}: .*; remove it, or choose another --output"):
        export_formats(str(student), ["torch-export"], tmp_path, text=[])


def test_a_second_export_of_a_model_keeps_what_was_made_of_it(student, tmp_path, capsys):
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(student), load_tokenizer(student)
    weights = {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}
    card = f"{MADE_WITH}\n"
    export(weights, model, tokenizer, tmp_path / "out", card)
    (tmp_path / "out" / "formats.json").write_text("{}")
    export(weights, model, tokenizer, tmp_path / "out", card + "again\n")
    assert (tmp_path / "out" / "formats.json").is_file() and "gone" not in capsys.readouterr().err
    weights = {name: value + 1 for name, value in weights.items()}
    export(weights, model, tokenizer, tmp_path / "out", card)
    assert (
        not (tmp_path / "out" / "formats.json").exists()
        and "replaced an earlier model; removed with it: formats.json" in capsys.readouterr().err
    )
    assert len(list(tmp_path.iterdir())) == 1, "no folder is left beside it"


def test_the_help_of_export_names_every_format():
    export = build_parser()._subcommands_action._name_parser_map["export"]
    [action] = [action for action in export._actions if action.dest == "format"]
    assert action.help.partition(": ")[2].split(", ") == ["hf", *FORMATS]
