"""Test what a person sees, on terminals of every kind and in files."""

import io
import re
import sys
import threading

import pytest
from tqdm.utils import disp_len

from ds_distill.cli.commands import COMMANDS
from ds_distill.utils import console, progress
from tests import patience
from tests.start import ROOT, environment_of
from tests.streams import ThreadStream

PLAIN = {"PYTHONIOENCODING": "", "PYTHONUTF8": "", "PYTHONCOERCECLOCALE": "", "LC_ALL": "C.UTF-8"}
PLACES = {
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
MANY = """
import io, sys
from ds_distill.cli import app as cli
from ds_distill.cli.commands import COMMANDS
for words in ([], ["--help"], *([command, "--help"] for command in COMMANDS), \
["distill", "--läuft"], ["distill", "--training.max_grad_norm", "…"]):
    assert cli.main(words) in (0, 2), words
from ds_distill.utils.console import spinner, progress, log
from ds_distill.reporting.tables import table
log("→ … −")
with progress(3, "läuft", "step") as bar:
    bar.update(3)
print(table([{"a": None, "b": "模型"}], {"a": "held-out → …", "b": "–"}))
"""


def python(*words: str, **variables: str):
    values = {
        name: value for name, value in environment_of(**(PLAIN | variables)).items() if value or name not in PLAIN
    }
    return patience.run([sys.executable, *words], env=values, cwd=ROOT, errors="replace")


@pytest.mark.parametrize("place", PLACES)
def test_what_a_terminal_cannot_show_is_replaced(tmp_path, place):
    """This covers the help of every command, messages, bars and tables."""
    (tmp_path / "many.py").write_text(MANY, encoding="utf-8")
    done = python(str(tmp_path / "many.py"), **PLACES[place])
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "?" in done.stdout + done.stderr
    assert all(f"usage: ds-distill {command} [options]" in done.stdout for command in COMMANDS)


def test_a_file_system_in_ascii_reads_names_as_utf_8(tmp_path):
    """The terminal encodes names in UTF-8, so the program restarts in UTF-8 mode with the same arguments."""
    where = tmp_path / "läuft"
    where.mkdir()
    (where / "größe.yaml").write_text("training: {seed: 3}\noutput: läuft/模型\n", encoding="utf-8")
    words = [
        "-m",
        "ds_distill",
        "distill",
        "--config",
        str(where / "größe.yaml"),
        "--corpus",
        "ein text.txt",
        "--print_config",
    ]
    plain = python(*words)
    assert "output: läuft/模型" in plain.stdout and "- ein text.txt" in plain.stdout
    other = python(*words, **PLACES["C locale"])
    assert (other.returncode, other.stderr) == (0, "")
    assert other.stdout == plain.stdout.encode("ascii", "replace").decode()


def test_a_stream_that_somebody_closed_takes_what_is_written():
    code = "import sys; sys.stderr = None; from ds_distill.cli import main; raise SystemExit(main(['distil']))"
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", ""), "results only on standard output"


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "


def test_a_log_has_a_dated_whole_line_every_half_minute(monkeypatch, clock):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    hour = 3600
    with console.progress(hour, "student", "step") as bar:
        for _ in range(hour // 10):
            clock[0] += 10
            bar.n += 10
            bar.show("loss 1.0", "5 tok/s", details=("mlm 2.0",))
            bar.refresh()
    lines = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()
    assert all(
        re.fullmatch(
            DATED + r"student: step [\d,]+ of 3,600, loss 1.0, 5 tok/s, ([\d:]+ left|in [\d:]+), mlm 2.0", line
        )
        for line in lines
    )
    seen = [int(line.split()[4].replace(",", "")) for line in lines]  # one step per second
    assert seen[0] == 10 and seen[-1] == hour, "the first comes early, and the end is shown"
    assert {after - before for before, after in zip(seen, seen[1:-1], strict=False)} == {30}


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
@pytest.mark.parametrize("label", ["distill", "student, no teacher", "模型", "a-very-long-name/of-a-model" * 3])
@pytest.mark.parametrize("total", [None, 1_250_000])
def test_a_bar_stays_in_one_line_and_its_figures_come_first(monkeypatch, width, label, total):
    stream = Tty()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "terminal_width", lambda: width)
    with console.progress(total, label, "step") as bar:
        bar.n = 12_000
        bar.show("loss 18.341", "568,000 tok/s", details=("kl 1.392", "mlm 8.564", "cosine 0.410", "lr 4.35e-04"))
        line = str(bar)
    assert disp_len(line) < width and line.startswith(label[:10])
    if width >= 80 and len(label) < 20:
        assert "12,000" in line and "loss 18.341, 568,000 tok/s" in line
        wide = width > 80 or len(label) < 10
        assert total is None or not wide or line.endswith("|") and line.index("|") > line.index("tok/s")
    if width == 200 and len(label) < 20:
        assert "kl 1.392, mlm 8.564, cosine 0.410, lr 4.35e-04" in line


def test_a_line_of_the_log_is_above_the_bar(monkeypatch):
    stream = Tty()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with console.progress(3, "student", "step") as bar:
        bar.update(1)
        console.log("step 1: held-out loss 2.0")
    shown = [line.split("\r")[-1] for line in stream.getvalue().split("\n")]
    assert shown[0] == "step 1: held-out loss 2.0" and shown[1].startswith("student: 1/3 steps")


def test_an_event_is_dated_where_there_is_no_terminal(monkeypatch, capsys):
    console.log_event("step 5: checkpoint saved")
    assert re.fullmatch(DATED + "step 5: checkpoint saved\n", capsys.readouterr().err)
    terminal = Tty()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    console.log_event("step 5: checkpoint saved")
    assert terminal.getvalue() == "step 5: checkpoint saved\n"


@pytest.mark.parametrize(
    "seconds, words", [(12, "12 s"), (600, "10 min"), (7980, "2 h 13 min"), (400_000, "4 days 15 h")]
)
def test_durations_in_words(seconds, words):
    assert console.duration(seconds) == words


def test_a_short_work_is_one_line_in_a_log(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with console.progress(None, "tokens", "B") as bar:
        bar.update(2_000_000)
    with console.progress(5, "seed 0", "example", initial=2) as bar:
        console.skip(bar, 1)
        bar.update(2)
    first, second = stream.getvalue().splitlines()
    assert re.match(DATED + "tokens: 2.0 MB", first) and re.match(DATED + "seed 0: example 5 of 5, ", second)
    with console.spinner("compiling"):
        pass
    assert stream.getvalue().count("\n") == 2 and "\r" not in stream.getvalue()


@pytest.mark.parametrize(("kind", "total", "amount"), [(list, None, "2 of 2"), (iter, 4, "2 of 4"), (iter, None, "2")])
def test_items_behind_a_bar_are_counted(monkeypatch, kind, total, amount):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(console.progress_over(kind([3, 5]), "parity", total=total)) == [3, 5]
    assert re.match(DATED + f"parity: batch {amount},? ", stream.getvalue())


def test_long_work_without_a_measure_says_that_it_lives(monkeypatch, clock):
    stream = ThreadStream()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console, "LOOK", 0.01)
    with console.spinner("compiling"):
        clock[0] += 11
        stream.wait()
    assert re.fullmatch(DATED + "compiling, 11 s\n", stream.getvalue())


def test_within_one_spinner_another_alone_is_shown(monkeypatch, clock):
    stream, looks = ThreadStream(), threading.Semaphore(0)

    class Spinners(list):
        def __getitem__(self, place):
            looks.release()
            return super().__getitem__(place)

    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console, "LOOK", 0.01)
    monkeypatch.setattr(console, "_spinners", Spinners())
    with console.spinner("writing onnx"):
        with console.spinner("tracing the model"):
            clock[0] += 11
            stream.wait()
            while looks.acquire(blocking=False):
                pass
            assert all(looks.acquire(timeout=600) for _ in range(8))  # both have looked at the clock again
        assert re.fullmatch(DATED + "tracing the model, 11 s\n", stream.getvalue())


@pytest.mark.parametrize("term, bars", [("xterm", True), ("dumb", False)])
def test_a_terminal_has_bars_unless_it_is_a_dumb_one(monkeypatch, term, bars):
    monkeypatch.setenv("TERM", term)
    terminal = Tty()
    monkeypatch.setattr(sys, "stderr", terminal)
    with console.progress(3, "student", "step") as bar:
        bar.update(3)
    with console.spinner("compiling"):
        pass
    assert ("\r" in terminal.getvalue()) == bars
    assert ("compiling" in terminal.getvalue()) == bars


def test_a_bar_that_moves_is_progress_on_ranks_that_do_not_show_it_too(monkeypatch, capsys):
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with console.progress(10, "steps", "step") as bar:
            before = progress.progress_count()
            bar.update(2)
            assert progress.progress_count() == before + 1
            bar.update(0)  # an update without any progress
            assert progress.progress_count() == before + 1


@pytest.mark.parametrize("begun", [0, 300])  # steps of an earlier start, which took no time of this one
def test_the_time_left_of_unlike_steps_is_told_by_their_mean(monkeypatch, clock, begun):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with console.progress(1000, "multitask", "step", mixed=True) as bar:
        monkeypatch.setattr(bar, "_time", lambda: clock[0])
        bar.start_t = bar.last_print_t = clock[0]
        console.skip(bar, begun)
        for seconds in [1.0] * 100 + [3.0] * 100:  # the last ones are the slow ones
            clock[0] += seconds
            bar.update()
        assert bar.parts("")[1:] == ["2.0 s per step", f"{bar.format_interval((800 - begun) * 2)} left"]
