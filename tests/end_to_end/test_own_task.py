"""Test that a student learns a task with labels of its own by the lines of the guide, and is exported."""

import json
import re
import subprocess
import sys

from ds_distill.utils.files import read_summary
from tests.start import ROOT, ds_distill
from tests.tiny import save_encoder


def test_the_lines_of_the_guide_train_and_export_seven_classes(tmp_path):
    guide = (ROOT / "docs" / "guide" / "finetuning.md").read_text()
    section = guide[guide.index("## Use your own task") :]
    program = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    command = re.search(r"```\nds-distill (.*?)\n```", section, re.DOTALL)[1].split()
    save_encoder("bert", tmp_path / "RUN" / "export")
    words = "zero one two three four five six".split()
    for split, count in (("train", 140), ("dev", 70)):
        rows = ({"text": f"this text says {words[i % 7]}", "label": i % 7} for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eval_accuracy" in done.stdout
    config = json.loads((tmp_path / "OWN" / "model" / "config.json").read_text())
    assert config["id2label"]["6"] == "other" and len(config["id2label"]) == 7
    folders = {"OWN/model": tmp_path / "OWN" / "model", "OWN/onnx": tmp_path / "OWN" / "onnx"}
    done = ds_distill(*(folders.get(word, word) for word in command))
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_summary(tmp_path / "OWN" / "onnx") is not None
