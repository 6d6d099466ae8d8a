"""Test that the page of the guide takes a user's own csv to a fine-tuned, distilled and exported classifier."""

import csv
import json
import re

from ds_distill.utils.files import read_summary
from tests.start import ROOT, ds_distill
from tests.tiny import save_encoder

QUICK = ("--finetune.epochs", 2, "--finetune.learning_rate", "3e-3", "--finetune.precision", "fp32")


def test_the_page_of_the_guide_takes_a_csv_to_an_exported_student_of_its_own_teacher(tmp_path):
    guide = (ROOT / "docs" / "guide" / "finetuning.md").read_text()
    section = guide[guide.index("## Use your own task") : guide.index("### Tag words")]
    (tmp_path / "banking.yaml").write_text(re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1])
    words = "zero one two three four five six".split()
    (tmp_path / "banking77").mkdir()
    for split, count in (("train", 140), ("test", 70)):
        with (tmp_path / "banking77" / f"{split}.csv").open("w", newline="") as file:
            rows = ([f"this text, number {i}, says {words[i % 7]}", words[i % 7]] for i in range(count))
            csv.writer(file).writerows([["text", "category"], *rows])
    save_encoder("bert", tmp_path / "TEACHER")
    save_encoder("bert", tmp_path / "RUN" / "export")
    blocks = "\n".join(re.findall(r"^```\n(ds-distill .*?)^```", section, re.DOTALL | re.MULTILINE)).replace(
        "\\\n", " "
    )
    commands = [line.split()[1:] for line in blocks.splitlines() if line]
    assert [command[0] for command in commands] == ["distill", "finetune", "finetune", "export"]
    paths = ("banking.yaml", "TEACHER", "RUN/export", "BANKING/teacher", "BANKING/student", "BANKING/onnx")
    for command in commands[1:]:
        line = [str(tmp_path / word) if word in paths else word for word in command]
        done = ds_distill(*line, *(QUICK if command[0] == "finetune" else ()))
        assert done.returncode == 0, done.stderr[-3000:]
    student = read_summary(tmp_path / "BANKING" / "student")
    assert student["metric"] == "accuracy" and set(student["metrics"]) == {"accuracy", "f1_macro"}
    assert student["examples"] == {"train": 140, "dev": 70}
    model = tmp_path / "BANKING" / "student" / "seed=0" / "model"
    config = json.loads((model / "config.json").read_text())
    assert config["finetuning_task"] == "banking" and config["id2label"] == dict(
        zip("0123456", sorted(words), strict=True)
    )
    assert "0 is `five`" in (model / "README.md").read_text()
    [onnx] = read_summary(tmp_path / "BANKING" / "onnx")["formats"].values()
    assert onnx["dev_accuracy_pytorch"] == student["accuracy"], "the exported folder is scored as it was in training"
