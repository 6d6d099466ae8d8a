"""Test the clients' table, and that no wrong answer passes for PyTorch's.

`python -m tests.clients` runs the clients themselves.
"""

import copy
import json
import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_distill.exporters.formats import FORMATS as PRODUCT_FORMATS
from ds_distill.exporters.formats import _check_agreement
from ds_distill.utils.errors import UserError
from tests.clients import exports, runner
from tests.clients.catalog import CLIENTS, ENVIRONMENTS, Client, Limit, get_checks
from tests.clients.compare import PYTORCH, QUANTIZED, TOLERANCES, Wrong, check_answers, too_alike
from tests.clients.environments import Environment, NotRun, make_ready, pinned
from tests.clients.exports import EXPORTS, FORMATS, Made
from tests.clients.report import BEGIN, END, failures, page_section, summarize, write_section

PAGE = Path(__file__).parents[3] / "docs" / "clients.md"
HELPERS = {"checks.py", "transformers_classes.py", "transformers_js_answers.mjs"}
REFERENCE = {
    "short": {"logits": [1.0, -2.0, 0.5], "scores": {"no": 0.25, "yes": 0.75}, "mean": [3.0, 4.0]},
    "overlong": {
        "logits": [0.0, 4.0],
        "scores": {"no": 0.9, "yes": 0.1},
        "mean": [-1.0, 0.0],
        "cut_last": {"logits": [4.0, 0.0], "scores": {"no": 0.2, "yes": 0.8}, "mean": [5.0, 12.0]},
    },
}
ANSWERS = {
    "short": {"logits": [1.0, -2.0, 0.5], "scores": [["yes", 0.75]], "unit_mean": [0.6, 0.8]},
    "overlong": {"logits": [0.0, 4.0], "scores": [["no", 0.9], ["yes", 0.1]], "mean": [-1.0, 0.0]},
}


def test_every_client_can_be_run():
    scripts = {file.name for file in runner.SCRIPTS.iterdir() if file.is_file()}
    assert scripts == {client.script for client in CLIENTS.values()} | HELPERS
    assert {client.environment for client in CLIENTS.values()} == set(ENVIRONMENTS)
    assert not any(name.startswith("test_") or name.endswith("_test.py") for name in scripts), (
        "pytest must not collect them"
    )
    for client in CLIENTS.values():
        checks = get_checks(client)
        assert checks and set(client.formats) <= set(FORMATS) == set(TOLERANCES)
        assert set(client.exports) <= {export.name for export, _ in checks}, "an export that none of its tasks has"
        assert client.in_page == client.script.endswith(".html")
        if client.script.endswith((".mjs", ".html")):
            assert ENVIRONMENTS[client.environment].installer == "npm"
    assert len({runner.file_name(client) for client in CLIENTS.values()}) == len(CLIENTS)


def test_every_kind_of_export_is_loaded_in_every_format_by_some_client():
    loaded = {(export.name, form) for client in CLIENTS.values() for export, form in get_checks(client)}
    assert loaded == {(name, form) for name in EXPORTS for form in FORMATS}
    assert set(FORMATS) - {"hf"} <= set(PRODUCT_FORMATS)
    for export in EXPORTS.values():
        assert export.made_by in ("distill", "pretrain") or export.source in EXPORTS


def test_right_answers_pass():
    assert check_answers(ANSWERS, REFERENCE) == pytest.approx({"short": 0.0, "overlong": 0.0}, abs=1e-12)
    other = copy.deepcopy(ANSWERS) | {
        "overlong": {"logits": [4.0, 0.0], "scores": [["yes", 0.8]], "unit_mean": [5 / 13, 12 / 13]}
    }
    assert max(check_answers(other, REFERENCE, cuts_last=True).values()) < 1e-12
    assert max(check_answers(other, REFERENCE).values()) > TOLERANCES["onnx-int8"]


@given(st.sampled_from(["short", "overlong"]), st.data())
def test_one_wrong_number_is_seen(name, data):
    answers = copy.deepcopy(ANSWERS)
    view = data.draw(st.sampled_from(sorted(answers[name])))
    off = data.draw(st.floats(2e-4, 10)) * data.draw(st.sampled_from([-1, 1]))
    at = data.draw(st.integers(0, len(answers[name][view]) - 1))
    scale = {"logits": 4.0, "mean": 5.0}.get(view, 1.0)
    if view == "scores":
        answers[name][view][at][1] += scale * off
    else:
        answers[name][view][at] += scale * off
    assert check_answers(answers, REFERENCE)[name] > TOLERANCES["hf"]


@pytest.mark.parametrize(
    ("view", "value", "message"),
    [
        ("logits", [], "no logits"),
        ("logits", None, "no logits"),
        ("logits", "123", "no logits"),
        ("logits", [1.0, -2.0], "2 numbers where 3 are expected"),
        ("logits", [1.0, math.nan, 0.5], "not finite"),
        ("logits", [1.0, None, 0.5], "not finite"),  # JSON has no NaN
        ("logits", [1.0, math.inf, 0.5], "not finite"),
        ("scores", [], "no scores"),
        ("scores", [["LABEL_1", 0.75]], "a score for LABEL_1, where the labels are no, yes"),
        ("answer", "a word", "no answer of that kind is expected"),
        ("guess", [1.0], "an answer of no known kind"),
    ],
)
def test_what_is_no_answer_is_none(view, value, message):
    with pytest.raises(Wrong, match=message):
        check_answers(ANSWERS | {"short": {view: value}}, REFERENCE)


def test_every_input_must_be_answered():
    for answers in ({}, {"short": ANSWERS["short"]}, ANSWERS | {"overlong": {}}):
        with pytest.raises(Wrong, match="no answer to the input"):
            check_answers(answers, REFERENCE)


def test_a_second_best_score_is_no_best():
    differences = check_answers(ANSWERS | {"short": {"scores": [["no", 0.25]]}}, REFERENCE)
    assert differences["short"] > TOLERANCES["onnx-int8"], "each score is its label's, but the label is not the first"


def test_references_that_would_let_another_texts_answer_pass_are_refused():
    assert too_alike(REFERENCE) is None
    assert "differ by 0" in too_alike({"one": REFERENCE["short"], "other": REFERENCE["short"]})
    near = {"one": {"logits": [1.0, 0.0]}, "other": {"logits": [1.0, 0.04]}}
    assert "all answers lie within 0.04" in too_alike(near)


def judged(**row):
    client = Client(
        "new", "torch", "torch_alone.py", "", limits=(Limit("unsupported", "it has no DistilBERT", ("student",)),)
    )
    return runner.judge(client, "student", "onnx", row, REFERENCE)


def test_a_check_is_the_same_failed_or_the_clients_own_limit():
    assert judged(answers=ANSWERS, errors={})["status"] == "same"
    off = copy.deepcopy(ANSWERS)
    off["short"]["logits"][0] += 0.01
    assert judged(answers=off, errors={})["status"] == "failed"
    assert judged(answers={}, errors={})["status"] == "failed"
    assert judged(answers=ANSWERS, errors={"short": "TypeError: x"}) | {"difference": 0} == {
        "status": "failed",
        "difference": 0,
        "error": "TypeError: x (input short)",
        "notes": [],
    }
    limit = judged(answers={}, errors={"short": "unsupported", "overlong": "unsupported"})
    assert (limit["status"], limit["error"]) == ("limit", "it has no DistilBERT")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script's text as the client "torch alone", by this environment's Python."""
    (tmp_path / "scripts").mkdir()
    monkeypatch.setattr(runner, "SCRIPTS", tmp_path / "scripts")
    monkeypatch.setattr(runner, "make_ready", lambda *_: Path(sys.prefix))
    inputs = {name: {"text": name} for name in REFERENCE}

    def start(text, minutes=10.0, formats=("hf",), refused=None, own=None):
        (tmp_path / "scripts" / "client.py").write_text("import json, sys\njob = json.load(open(sys.argv[1]))\n" + text)
        client = Client(
            "new",
            "torch",
            "client.py",
            "",
            tasks=("fill-mask",),
            formats=formats,
            exports=("student", "bert"),
            minutes=minutes,
        )
        made = {"student": Made(str(tmp_path)), "bert": Made(str(tmp_path), refused or {})}
        references = {name: {"inputs": inputs, "answers": {PYTORCH: REFERENCE} | (own or {})} for name in made}
        return runner.run_client(client, tmp_path, made, references, tmp_path / "log.txt", lambda _: None)

    return start


WRITE = f"""
answers = json.loads({json.dumps(ANSWERS)!r})
def write(checks):
    rows = [dict(export=check["export"], format=check["format"], answers=answers, errors=dict()) for check in checks]
    json.dump(dict(versions=dict(new="1.0"), checks=rows), open(sys.argv[2], "w"))
"""


def test_a_client_runs_in_a_process_of_its_own(run):
    row = run(WRITE + "write(job['checks'])")
    assert row["not_run"] is None and row["versions"] == {"new": "1.0"}
    assert [(check["export"], check["status"]) for check in row["checks"]] == [("student", "same"), ("bert", "same")]
    assert failures([row], {}) == []


def test_a_client_that_dies_on_the_way_has_failed_at_the_rest(run):
    row = run(WRITE + "write(job['checks'][:1]); sys.exit('Segmentation fault')")
    assert [check["status"] for check in row["checks"]] == ["same", "failed"]
    assert failures([row], {}) == ["new: bert (hf): its process ended with 1: Segmentation fault"]


def test_a_quantized_file_is_compared_with_its_own_answers(run):
    far = copy.deepcopy(REFERENCE)
    far["short"]["logits"][0] += 1
    statuses = {
        (check["export"], check["format"]): check["status"]
        for check in run(WRITE + "write(job['checks'])", formats=("onnx", *QUANTIZED), own={QUANTIZED[0]: far})[
            "checks"
        ]
    }
    assert {key for key, status in statuses.items() if status == "failed"} == {
        ("student", QUANTIZED[0]),
        ("bert", QUANTIZED[0]),
    }


def test_a_format_that_the_product_refuses_is_not_asked_for(run):
    row = run(WRITE + "write(job['checks'])", formats=("onnx", "onnx-int4"), refused={"onnx-int4": "keeps only 35 %"})
    assert [(check["export"], check["format"]) for check in row["checks"]] == [
        ("student", "onnx"),
        ("student", "onnx-int4"),
        ("bert", "onnx"),
    ]


def test_four_bits_may_be_refused_and_nothing_else(monkeypatch, tmp_path):
    figures = {"clear_positions": 100, "clear_agreement": 0.35}
    with pytest.raises(UserError) as refusal:
        _check_agreement("onnx-int4", PRODUCT_FORMATS["onnx-int4"], figures)
    asked, messages = [], [str(refusal.value)]

    def fail_at_four_bits(*words):
        asked.append(words[words.index("--format") + 1 :])
        if "onnx-int4" in asked[-1]:
            raise exports._CommandFailed(f"ds-distill export: ds-distill: {messages[-1]}")

    monkeypatch.setattr(exports, "_ds_distill", fail_at_four_bits)
    made = exports._export(tmp_path, "--run", tmp_path)
    assert made.folder == str(tmp_path) and "only 35 %" in made.refused["onnx-int4"] and len(made.refused) == 1
    assert asked == [FORMATS, tuple(form for form in FORMATS if form != "onnx-int4")]
    for other in ("--format onnx-int8: only 35 % of the predictions agree with it", "--format onnx-int4: no room"):
        messages.append(other)
        with pytest.raises(exports._CommandFailed):
            exports._export(tmp_path, "--run", tmp_path)


def test_a_client_that_says_nothing_or_hangs_has_failed(run):
    assert [check["status"] for check in run("")["checks"]] == ["failed", "failed"]
    row = run("import time; time.sleep(3600)", minutes=0.01)
    assert {check["error"] for check in row["checks"]} == {"stopped after 0.01 minutes"}


def test_a_client_that_cannot_run_here_says_why(run):
    row = run("sys.exit('not run: only root may become another user')")
    assert row["not_run"] == "only root may become another user" and failures([row], {}) == []


def test_an_environment_that_cannot_be_made_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotRun, match="no npm on this machine"):
        make_ready(Environment("js", ("left-pad@1.0.0",), "npm"), tmp_path / "environments")
    assert not (tmp_path / "environments" / "js" / "made-from.txt").exists(), "it is tried again the next time"


def test_an_environment_is_used_again_until_its_packages_change(tmp_path):
    environment = Environment("x", (pinned("torch"),))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "made-from.txt").write_text(environment.stamp)
    assert make_ready(environment, tmp_path) == tmp_path / "x"
    assert Environment("x", (pinned("numpy"),)).stamp != environment.stamp
    with pytest.raises(KeyError):
        pinned("left-pad")


def test_the_table_goes_between_the_markers_and_names_what_failed(tmp_path):
    checks = [
        {"export": "student", "format": "hf", "status": "same", "difference": 2e-6, "error": None, "notes": []},
        {"export": "bert", "format": "hf", "status": "failed", "difference": None, "error": "a | b", "notes": []},
    ]
    row = {"client": "torch alone", "versions": {"torch": "2.13"}, "not_run": None, "checks": checks}
    line = summarize(row)
    assert (
        line["exports"] == "1 of 2" and line["fp32"] == "2.0e-06" and "**failed**: bert hf: a \\| b" in line["outcome"]
    )
    gone = summarize({"client": "torch alone", "versions": {}, "not_run": "no room", "checks": []})
    assert gone["outcome"] == "not run: no room"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    unmade, refused = {"xlm-roberta": "no way"}, {"roberta": {"onnx-int4": "keeps only 35 %"}}
    write_section(page, page_section([row], unmade, refused, "Run on a day."))
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| torch alone (torch 2.13) |" in text and "`xlm-roberta` could not be made: no way" in text
    assert "`roberta` has no `onnx-int4`, which `ds-distill export` refused: keeps only 35 %" in text
    assert failures([row], {"xlm-roberta": "no way"}) == ["export xlm-roberta: no way", "torch alone: bert (hf): a | b"]


def test_the_documents_have_a_place_for_the_table(tmp_path):
    copy_of_page = tmp_path / PAGE.name
    copy_of_page.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_section(copy_of_page, "a table")
    assert "a table" in copy_of_page.read_text(encoding="utf-8")
