"""What the tests of exporters share."""

import shutil

import pytest

from ds_distill.exporters import format_table


@pytest.fixture
def reuse_graph(monkeypatch):
    """Return a function after which exports take an ONNX graph that was traced before: to trace one takes seconds."""

    def reuse(graph) -> None:
        def copy(_, file) -> None:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(graph, file)

        monkeypatch.setattr(format_table, "write_onnx", copy)

    return reuse
