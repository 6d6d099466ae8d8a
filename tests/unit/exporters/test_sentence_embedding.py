"""Test the files of sentence-transformers for a model that was made of another one."""

import json

import pytest
from transformers import BertConfig

from ds_distill.exporters.sentence_embedding import copy_sentence_transformers_files, write_sentence_transformers_files
from ds_distill.models.layer_shapes import LayerShape, set_layer_shapes
from ds_distill.models.sentence_modules import is_embedder
from ds_distill.reporting.provenance import from_model
from ds_distill.utils.errors import UserError
from tests.tiny import make_embedder

KINDS = ("Transformer", "Pooling", "Dense", "Normalize")


@pytest.mark.parametrize("width, kept", [(32, KINDS), (16, KINDS[:2])])
def test_a_student_keeps_the_modules_that_fit_its_width(tmp_path, capsys, width, kept):
    teacher, kept_in_run, student = (tmp_path / name for name in ("teacher", "run", "student"))
    for folder in (teacher / "1_Pooling", teacher / "2_Dense", teacher / "3_Normalize", kept_in_run, student):
        folder.mkdir(parents=True)
    paths = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(KINDS, paths, strict=True))
    ]
    contents = {
        "modules.json": modules,
        "config.json": {"hidden_size": 32},
        "sentence_bert_config.json": {"max_seq_length": 512},
        "config_sentence_transformers.json": {"prompts": {"query": "q: "}, "__version__": {"torch": "1"}},
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_cls_token": True},
        "2_Dense/config.json": {"in_features": 32, "out_features": 8},
    }
    for name, content in contents.items():
        (teacher / name).write_text(json.dumps(content))
    (teacher / "2_Dense" / "model.safetensors").write_bytes(b"weights")

    config = BertConfig(hidden_size=width, num_attention_heads=2)
    write_sentence_transformers_files(teacher, config, 64, kept_in_run)
    copy_sentence_transformers_files(kept_in_run, student)
    written = {str(file.relative_to(student)): file for file in student.rglob("*") if file.is_file()}
    listed = json.loads(written["modules.json"].read_text())
    assert [module["type"].rsplit(".")[-1] for module in listed] == list(kept)
    assert json.loads(written["sentence_bert_config.json"].read_text())["max_seq_length"] == 64
    assert json.loads(written["config_sentence_transformers.json"].read_text()) == {"prompts": {"query": "q: "}}
    pooling = json.loads(written["1_Pooling/config.json"].read_text())
    assert pooling["word_embedding_dimension"] == width and pooling["pooling_mode_cls_token"]
    assert ("2_Dense/model.safetensors" in written) == (width == 32) == ("another width" not in capsys.readouterr().err)


@pytest.mark.parametrize("is_embedder", [False, True])
def test_layers_of_their_own_shape_get_none_and_it_is_said(tmp_path, capsys, is_embedder):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    if is_embedder:
        make_embedder(source)
    config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    set_layer_shapes(config, [LayerShape(0, 64)])
    write_sentence_transformers_files(source, config, 64, folder)
    assert not list(folder.iterdir())
    assert ("its modules.json is left out, because" in capsys.readouterr().err) == is_embedder


@pytest.mark.parametrize(
    ("kinds", "kept"),
    [
        (["sparse_encoder.models.MLMTransformer", "sparse_encoder.models.SpladePooling"], None),
        (["models.Transformer", "sparse_encoder.models.SpladePooling"], ["Transformer", "Pooling"]),
        (["models.Transformer", "models.Pooling", "my_package.Own", "models.Normalize"], ["Transformer", "Pooling"]),
        (["base.modules.Transformer", "sentence_transformer.modules.Pooling"], ["Transformer", "Pooling"]),
    ],
)
def test_only_modules_for_dense_embeddings_are_kept(tmp_path, capsys, kinds, kept):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    folder.mkdir()
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_x" * (i > 0), "type": f"sentence_transformers.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    config = BertConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, intermediate_size=64)
    write_sentence_transformers_files(source, config, 64, folder)
    if kept is None:
        assert not list(folder.iterdir()) and "MLMTransformer, is not for dense" in capsys.readouterr().err
        assert not is_embedder(source) and not from_model(source).sentence_transformers
    else:
        assert [entry["type"] for entry in json.loads((folder / "modules.json").read_text())] == [
            f"sentence_transformers.models.{kind}" for kind in kept
        ]
        assert ("is none of Dense, " in capsys.readouterr().err) == (len(kept) < len(kinds) or "Splade" in kinds[1])


def test_a_teacher_without_them_gives_none(tmp_path):
    copy_sentence_transformers_files(tmp_path, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("path", ["../private", "linked"])
def test_no_module_brings_files_from_elsewhere(tmp_path, path):
    source, target, private = (tmp_path / name for name in ("source", "target", "private"))
    for folder in (source, target, private):
        folder.mkdir()
    (private / "key").write_text("secret")
    (source / "linked").symlink_to(private)
    (source / "private").mkdir()
    modules = [{"path": "", "type": "x.Transformer"}, {"path": path, "type": "x.Pooling"}]
    (source / "modules.json").write_text(json.dumps(modules))
    if path == "linked":
        with pytest.raises(UserError, match="linked: a link to .*private, which is outside of .*source"):
            copy_sentence_transformers_files(source, target)
    else:
        copy_sentence_transformers_files(source, target)
    assert not list(tmp_path.glob("target/**/key"))
