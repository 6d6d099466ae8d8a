"""Copies of files that may be published."""

import pytest

from ds_distill.utils.errors import UserError
from ds_distill.utils.files import copy_within


def test_a_copy_has_no_file_from_outside(tmp_path):
    tokens, target, private = (tmp_path / name for name in ("tokens", "target", "private"))
    (tokens / "tokenizer").mkdir(parents=True)
    private.mkdir()
    (private / "id_rsa").write_text("secret")
    (tokens / "vocab").write_text("words")
    (tokens / "tokenizer" / "vocab.txt").symlink_to("../vocab")
    copy_within(tokens / "tokenizer", target, tokens)
    assert (target / "vocab.txt").read_text() == "words" and not (target / "vocab.txt").is_symlink()
    for link, to in (("x", private / "id_rsa"), ("folder", private), ("deep", "../../private/id_rsa")):
        (tokens / "tokenizer" / link).symlink_to(to)
        with pytest.raises(UserError, match=f"tokenizer/{link}: a link to .*private.*outside of .*tokens"):
            copy_within(tokens / "tokenizer", target, tokens)
        (tokens / "tokenizer" / link).unlink()
    (tokens / "other").symlink_to(private)
    with pytest.raises(UserError, match="tokens/other: a link"):
        copy_within(tokens / "other", target, tokens)
    assert [file.name for file in target.iterdir()] == ["vocab.txt"]


def test_the_hugging_face_caches_own_links_are_copied(tmp_path):
    snapshot = tmp_path / "models--acme--small" / "snapshots" / "0a1b"
    blobs = snapshot.parents[1] / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "77").write_text("weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/77")
    copy_within(snapshot / "model.safetensors", tmp_path / "copy", snapshot)
    assert (tmp_path / "copy").read_text() == "weights"
