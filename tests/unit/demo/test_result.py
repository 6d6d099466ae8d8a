from ds_distill.demo.result import format_places


def test_only_files_that_exist_are_shown(tmp_path):
    """Such as no TensorBoard's, where training.report_to leaves it out."""
    (tmp_path / "distilled").mkdir()
    (tmp_path / "distilled" / "loss.png").touch()
    assert format_places(tmp_path).split() == ["loss", "plot:", str(tmp_path / "distilled" / "loss.png")]
