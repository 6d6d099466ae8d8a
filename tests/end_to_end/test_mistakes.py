"""Each mistake gets one clear sentence, a non-zero exit status and no traceback."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from ds_distill.data.tokenizer import train_wordpiece
from tests.start import ds_distill, start_ranks


@pytest.mark.promise("Each mistake of a user is one sentence, without a traceback")
def test_each_mistake_is_one_sentence(world, common, tmp_path, record_property):
    from transformers import AutoTokenizer, BertConfig, BertModel

    headless = tmp_path / "headless"
    BertModel(
        BertConfig(vocab_size=256, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64)
    ).save_pretrained(headless)
    AutoTokenizer.from_pretrained(world / "teacher").save_pretrained(headless)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    broken = world / "broken"
    done = ds_distill(
        "prepare",
        "--tokenizer",
        world / "teacher",
        "--corpus",
        world / "text.txt",
        "--output",
        broken,
        "--data.sequence_length",
        32,
    )
    assert done.returncode == 0, done.stderr
    with open(broken / "train-000.bin", "r+b") as file:
        file.truncate(100)
    train_wordpiece(["another text with other words in it " * 20], 256, tmp_path / "other")
    other = tmp_path / "other tokens"
    done = ds_distill(
        "prepare",
        "--tokenizer",
        tmp_path / "other",
        "--corpus",
        world / "text.txt",
        "--output",
        other,
        "--data.sequence_length",
        32,
    )
    assert done.returncode == 0, done.stderr
    teacher = ["--teacher", world / "teacher"]
    cases = {
        "did you mean training.learning_rate": [*teacher, *common, "--training.learningrate", 1],
        "global_batch_size": [*teacher, *common, "--training.global_batch_size", "many"],
        "nowhere": ["--teacher", tmp_path / "nowhere", *common],
        "missing.txt": [*teacher, "--corpus", tmp_path / "missing.txt", *common[2:]],
        "head": ["--teacher", headless, *common],
        "4 layers, 0 to 3": [*teacher, *common, "--student.init_layers", "[0, 9]"],
        "positions": [*teacher, *common, "--data.sequence_length", 64],
        "data.weights = [1.0, 2.0]: must be one number": [*teacher, *common, "--data.weights", "[1, 2]"],
        "empty": [*teacher, "--corpus", empty, *common[2:]],
        "train-000.bin: expected": [*teacher, "--tokens", broken, *common[2:]],
        "no GPU": [*teacher, *common, "--training.precision", "fp16"],
        "finds no GPU": [*teacher, *common, "--training.device", "cuda"],
        "its tokenizer differs from the one that": [*teacher, "--tokens", other, *common[2:]],
        "data.heldout_fraction = 0": [*teacher, *common, "--data.heldout_fraction", 0],
        "training.optimizer = apex": [*teacher, *common, "--training.optimizer", "apex"],
        "is a file; choose another --output": [*teacher, *common, "--output", empty / "under a file"],
    }
    for number, (words, arguments) in enumerate(cases.items()):
        done = ds_distill("distill", "--output", tmp_path / f"out{number}", *arguments)
        code, errors = done.returncode, done.stderr
        messages = [line for line in errors.splitlines() if line.startswith("ds-distill: ")]
        assert code != 0, words
        assert "Traceback" not in errors, f"{words}: {errors[-1500:]}"
        assert len(messages) == 1 and words.lower() in messages[0].lower(), f"{words}: {errors[-800:]}"
        assert not (tmp_path / f"out{number}" / "tokens").exists(), f"{words}: told before a corpus is prepared"
    sizes = ["pretrain", "--tokenizer", world / "teacher", *common, "--output", tmp_path / "sizes"]
    for words, size in (
        ("did you mean num_attention_heads?", "num_atention_heads: 4"),
        ("a BERT of these sizes cannot be built", "num_attention_heads: 5"),
        ("num_hidden_layers = 0: must be a whole number, 1 or more", "num_hidden_layers: 0"),
        ("hidden_size = 32.5: must be a whole number", "hidden_size: 32.5"),
        ("initializer_range = -0.1: must be more than 0", "initializer_range: -0.1"),
        ("the tokenizer determines it", "vocab_size: 7"),
        ("the model has 8 positions", "max_position_embeddings: 8"),
    ):
        done = ds_distill(*sizes, "--model", f"{{{size}}}")
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr[-800:]
    assert not (tmp_path / "sizes" / "tokens").exists()
    record_property("mistakes", len(cases))


@pytest.mark.parametrize("what", ["weights", "corpus"])
def test_what_the_first_rank_alone_looks_at_ends_all_with_one_sentence(world, common, tmp_path, what):
    teacher, options = world / "teacher", []
    if what == "weights":
        teacher = shutil.copytree(teacher, tmp_path / "teacher")
        weights = load_file(teacher / "model.safetensors")
        weights["bert.encoder.layer.1.output.dense.bias"][0] = float("nan")
        save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    else:
        options = ["--corpus", tmp_path / "missing.txt"]
    done = [
        rank.wait()
        for rank in start_ranks(
            2, "ds_distill", "distill", "--teacher", teacher, *common, *options, "--output", tmp_path / "out"
        )
    ]
    messages = [line for rank in done for line in rank.stderr.splitlines() if line.startswith("ds-distill: ")]
    assert [rank.returncode for rank in done] == [2, 2] and len(messages) == 1, [rank.stderr[-800:] for rank in done]
    assert {"weights": "NaN or infinite values", "corpus": "missing.txt: no such file"}[what] in messages[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.promise("Another corpus or recipe under a resumed run is refused, and the difference shown")
def test_a_folder_holds_one_run(world, common, tmp_path):
    output = tmp_path / "used"
    arguments = ["distill", "--teacher", world / "teacher", *common, "--output", output]
    assert ds_distill(*arguments).returncode == 0
    done = ds_distill(*arguments, "--training.seed", 5)
    assert done.returncode == 2 and "holds another run" in done.stderr and "training.seed" in done.stderr
    (tmp_path / "more.txt").write_text((world / "text.txt").read_text() + "\n\none more")
    done = ds_distill(*arguments, "--corpus", tmp_path / "more.txt")
    assert done.returncode == 2 and "holds another run (--corpus was" in done.stderr
    done = ds_distill("export", "--run", output, "--output", output)
    assert done.returncode == 2 and "the folder of a run or study" in done.stderr and (output / "checkpoints").is_dir()
    shutil.rmtree(output)


def test_a_refused_start_does_not_bind_the_folder_to_its_settings(world, common, tmp_path):
    start = ["distill", "--teacher", world / "teacher", *common, "--output", tmp_path / "out"]
    done = ds_distill(*start, "--data.sequence_length", 64)
    assert done.returncode == 2 and "positions" in done.stderr
    assert ds_distill(*start).returncode == 0


@pytest.mark.parametrize("command", ["run", "prepare", "pretrain", "distill", "evaluate", "export", "env"])
def test_help_teaches(command):
    done = ds_distill(command, "--help")
    assert done.returncode == 0 and "--output" in done.stdout
    assert command in ("export", "env") or "Peak learning rate" in done.stdout
