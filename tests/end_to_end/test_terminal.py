"""Test what commands show on a real pseudo-terminal and in files, and that the next commands that they print work."""

import json
import re
import shlex

import pytest
from tqdm.utils import disp_len

from tests.start import OnTerminal, ds_distill

DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def lines_shown(written: str) -> tuple[list[str], list[str]]:
    """Return the lines that a terminal shows at the end, and all that it showed at some time, without trailing blanks.

    It knows the control characters that the program may use. Others fail.
    """
    lasting, ever, line, column = [], [], "", 0
    for part in re.findall(r"\r\n|\r|\x1b\[K|[^\r\n\x1b]+|.", written, re.DOTALL):
        if part == "\r\n":
            lasting.append(line.rstrip())
            ever.append(line.rstrip())
            line, column = "", 0
        elif part == "\r":
            ever.append(line.rstrip())
            column = 0
        elif part == "\x1b[K":
            line = line[:column]
        else:
            assert part.isprintable(), repr(part)
            line = line[:column] + part + line[column + len(part) :]
            column += len(part)
    return [*lasting, *([line] if line.strip() else [])], ever


def next_commands(lines: list[str]) -> list[list[str]]:
    """Return the words of each command that is shown below "Next:", as a shell reads them."""
    text = "\n".join(lines[lines.index("Next:") + 1 :]).replace("\\\n", "")
    return [words for words in (shlex.split(line, comments=True) for line in text.splitlines()) if words]


def run_next(words: list[str], *others):
    """Run a command as printed, with `others` at its end, and return the finished process."""
    assert words[0] == "ds-distill"
    done = ds_distill(*words[1:], *others)
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
    return done


def summary_of(done) -> dict:
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def sst2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sst2")
    for split in ("train", "validation"):
        rows = [{"sentence": f"{word} model", "label": label} for label, word in enumerate(("small", "large"))] * 8
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_distillation_on_80_columns(world, common, sst2):
    output = world / "on a terminal"
    words = ["distill", "--teacher", world / "teacher", *common, "--output", output]
    every = ["--training.eval_every", 4, "--training.save_every", 5]
    done = OnTerminal(80, "ds_distill", *words, *every).wait()
    assert done.returncode == 0, done.stdout[-3000:]
    lines, ever = lines_shown(done.stdout)
    shown = "\n".join(lines)
    before_the_first_step = lines[: lines.index(next(line for line in lines if line.startswith("step 0: held-out")))]
    labels = [line.split()[0] for line in before_the_first_step if line[:1].strip()]
    header = ["teacher", "student", "device", "text", "steps", "loss", "ETA", "output"]
    assert labels[labels.index("teacher") :] == header
    for fact in ("teacher +bert, 4 layers", "student +distilbert, 2 layers", "CPU .*fp32", "10, each on 8 sequences"):
        assert re.search(fact, shown), fact
    for step in (0, 4, 8, 10):
        assert re.search(rf"^step {step}: held-out loss [\d.]+", shown, re.MULTILINE)
    for step in (5, 10):
        assert re.search(rf"^step {step}: checkpoint saved, \d+ MB in ", shown, re.MULTILINE)
    bars = [line for line in ever if re.match(r"distill: \d+/10 steps, loss", line)]
    assert bars and all(re.search(r" tok/s, .*\|.*\|$", bar) for bar in bars), "figures first, bar last"
    table = lines[lines.index(next(line for line in lines if "accuracy" in line and "loss (nats)" in line)) :]
    assert [re.split("  +", line)[0] for line in table[1:3]] == ["held-out text, at start", "held-out text, at end"]
    assert table[3].startswith("the teacher")
    assert '{"' not in shown, "JSON is for programs"

    evaluate, finetune, export = (words for words in next_commands(lines) if words[0] != "source")
    assert len(summary_of(run_next(evaluate))["models"]) == 2
    # only the data, which would come from the Hub, is given
    run_next(finetune, "--data", sst2, "--finetune.precision", "fp32", "--finetune.epochs", 1)
    assert "onnx-int8" in summary_of(run_next(export))["formats"]

    summary = (output / "summary.json").read_bytes()
    again = ds_distill(*words, *every)
    assert again.returncode == 0 and "finished before (10 of 10 steps), nothing to do" in again.stderr
    assert (output / "summary.json").read_bytes() == summary, "left alone"
    assert summary_of(again) == json.loads(summary)
    assert "step 10" not in again.stderr and "ETA" not in again.stderr
    assert [line for line in ever if disp_len(line) > 80 and str(world) not in line] == [], "a path alone may be longer"


def test_a_pipeline_on_200_columns_and_then_in_a_file(world, common, tmp_path):
    """prepare → pretrain → distill: each prints the next, which works as printed."""
    settings = common[common.index("--data.sequence_length") : common.index("--training.global_batch_size")]
    prepare = ["prepare", "--tokenizer", world / "teacher", *common[:2], *settings, "--output", tmp_path / "tokens"]
    done = OnTerminal(200, "ds_distill", *prepare).wait()
    assert done.returncode == 0, done.stdout[-3000:]
    (pretrain,) = (words for words in next_commands(lines_shown(done.stdout)[0]) if words[0] != "source")
    few = ["--training.max_tokens", 512, "--training.precision", "fp32", "--training.global_batch_size", 8]
    done = OnTerminal(200, "ds_distill", *pretrain[1:], *few).wait()
    assert done.returncode == 0, done.stdout[-3000:]
    lines, ever = lines_shown(done.stdout)
    bars = [line for line in ever if re.match(r"pretrain: \d/2 steps, loss", line)]
    assert bars and all(re.search(r" tok/s, .*, mlm [\d.]+, lr .*\|.*\|$", bar) for bar in bars), "and the details"
    assert [line for line in ever if disp_len(line) > 200 and str(tmp_path) not in line] == []
    distill, evaluate = (words for words in next_commands(lines) if words[0] != "source")
    assert len(summary_of(run_next(evaluate))["models"]) == 2

    done = run_next(distill, *few)
    assert not re.search(r"[\r\x1b]", done.stderr + done.stdout)
    for event in ("held-out loss ", "checkpoint saved, "):
        assert re.search(rf"^{DATED}step 2: {event}", done.stderr, re.MULTILINE)
    assert re.search(rf"^{DATED}distill: step 2 of 2, loss [\d.]+, [\d,]+ tok/s, in ", done.stderr, re.MULTILINE)
    assert len(done.stdout.splitlines()) == 1 and summary_of(done)["steps"] == 2


def test_json_on_a_terminal_when_asked():
    done = OnTerminal(80, "ds_distill", "env", "--json", PATH="/nonexistent", CXX="none").wait()  # builds nothing
    assert done.returncode == 0, done.stdout[-3000:]
    assert json.loads(lines_shown(done.stdout)[0][-1])
