"""Test the further fine-tunings of a study: their commands, their rows, and which mistakes are told before any job."""

import json
from dataclasses import asdict

import pytest

from ds_distill.cli.parser import build_parser, check_command
from ds_distill.cli.study import make_study
from ds_distill.recipe import Recipe
from ds_distill.study.jobs import make_jobs
from ds_distill.study.plan import Study
from ds_distill.study.rows import collect_rows
from ds_distill.study.run import check_finetunings
from ds_distill.study.variants import Variant
from ds_distill.utils.errors import UserError
from tests.tiny import save_encoder

PLAN = """
teacher: T
corpus: text.txt
students: {a: {}}
tasks: [squad, rte]
copies: 8
cloze: 100
seeds: 3
finetune: {epochs: 2, layers_first: 0.5, match: [{loss: cosine}], squad: {learning_rate: 3e-4}}
variants:
  averaged: {student: a, finetune: {average_weights: 0.33}}
  teacher, averaged: {student: teacher, finetune: {average_weights: 0.33}}
  all together:
    student: a
    task_distillation: yes
    teachers: all
    augmented: yes
    finetune: {augmented_copies: 4, squad: {augmented_copies: 2, epochs: 1}, rte: {seeds: 5}}
  of one's own: {student: teacher, task_distillation: true, teachers: TUNED}
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN.replace("TUNED", str(tmp_path / "tuned")))
    for task in ("squad", "rte"):
        save_encoder("bert", tmp_path / "tuned" / task)
    return make_study(build_parser().parse_args(["study", "--config", str(tmp_path / "plan.yaml")]).study)


def test_a_variant_is_a_fine_tuning_by_settings_of_its_own(study, tmp_path):
    study.check()
    jobs = {job.what: job for job in make_jobs(study, tmp_path)}
    averaged = jobs["rte, averaged"]
    assert averaged.model == tmp_path / "students" / "a" and averaged.teacher is None
    settings = build_parser().parse_args([*averaged.argv, "--output", "x"]).finetune.finetune
    assert settings["average_weights"] == 0.33 and not settings["match"], "without a teacher nothing is matched"
    assert jobs["rte, teacher, averaged"].model == "T"
    together = jobs["squad, all together"]
    assert together.depends_on == (tmp_path / "augmented" / "squad",) and together.every_teacher
    given = build_parser().parse_args([*together.argv, "--output", "x", "--teacher", "t"]).finetune
    assert given.augmented == str(tmp_path / "augmented" / "squad") and given.finetune["augmented_copies"] == 2
    assert (given.finetune["epochs"], given.finetune["learning_rate"], given.finetune["layers_first"]) == (1, 3e-4, 0.5)
    assert jobs["rte, all together"].seeds == 5 and together.seeds == 3
    assert jobs["squad, of one's own"].command()[-4:-2] == ["--teacher", str(tmp_path / "tuned" / "squad")]
    squad, rte = jobs["squad, augmented texts"].argv, jobs["rte, augmented texts"].argv
    assert squad[-5:] == ("8", "--cloze", "100", "--corpus", "text.txt") and "--cloze" not in rte


def test_every_seed_of_the_teacher_is_named(study, tmp_path):
    job = next(job for job in make_jobs(study, tmp_path) if job.what == "rte, all together")
    for folder, summary in (
        (job.teacher, {"seeds": [{"seed": 0}, {"seed": 1}], "output": "o", "export": "o/seed=1/model"}),
        (job.model, {"output": "o", "export": "o/export"}),
    ):
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary))
    words = job.command()
    place = words.index("--teacher")
    assert words[place + 1 : place + 3] == [str(job.teacher / f"seed={seed}" / "model") for seed in (0, 1)]
    assert words[place + 3] == "--output"


def test_the_report_has_a_row_for_each(study, tmp_path):
    rows = collect_rows(study, tmp_path)
    assert [(row["model"], row.get("student")) for row in rows] == [
        ("teacher", None),
        ("a", None),
        ("averaged", "a"),
        ("teacher, averaged", "teacher"),
        ("all together", "a"),
        ("of one's own", "teacher"),
    ]
    assert Study.from_dict(json.loads(json.dumps(asdict(study)))) == study


@pytest.mark.parametrize(
    "variant, changes, message",
    [
        (Variant("b"), {}, "v: student: b: not a student of this study; the students are a; teacher is the teacher"),
        (Variant("a", True), {"include_teacher": False}, "needs the fine-tuned teacher; set include_teacher to true"),
        (Variant("a", teachers="all"), {}, "v: teachers: all: needs a fine-tuned teacher; set task_distillation to"),
        (Variant("a", True, "here"), {}, "v: teachers: here: has no model of rte; give median, all, or a folder that"),
        (Variant("a", augmented=True), {}, "v: augmented: needs a fine-tuned teacher"),
        (Variant("a", finetune={"epoch": 1}), {}, "variants: v: finetune: epoch: no such setting; did you mean epochs"),
        (Variant("a", finetune={"rte": 1}), {}, "variants: v: finetune: rte: 1: must map names of settings to values"),
        (Variant("a", True, augmented=True), {"copies": 0}, "copies = 0: must be at least 1"),
        (
            Variant("a", True, augmented=True, finetune={"soft_label_weight": 0}),
            {},
            "variants: v: finetune.soft_label_weight = 0: nothing would be learned from augmented texts",
        ),
        *(
            (Variant("a", teachers == "all", teachers, finetune=settings), {}, message)
            for teachers, settings, message in (
                (
                    "median",
                    {"match": [{"loss": "mse"}]},
                    "v: finetune: match: needs a fine-tuned teacher; set task_dis",
                ),
                (
                    "median",
                    {"rte": {"layers_first": 0.5}},
                    "v: finetune: layers_first: needs a fine-tuned teacher; set task",
                ),
                ("median", {"teacher_weights": [1]}, "v: finetune: teacher_weights: needs several teachers; set teach"),
                ("all", {"augmented_copies": 2}, "v: finetune: augmented_copies: needs augmented texts; set augme"),
                (
                    "all",
                    {"rte": {"teacher_weights": [1, 2]}},
                    "the teacher has 5 seeds on rte; give one number for each",
                ),
            )
        ),
        (
            Variant("a", True, augmented=True, finetune={"augmented_copies": 9}),
            {},
            "variants: v: finetune.augmented_copies = 9: there are 4 copies of each example; give fewer, or raise",
        ),
        (Variant("a", finetune={"learning_rate": -1.0}), {}, "variants: v: finetune.learning_rate = -1.0: must be be"),
        (Variant("a"), {"students": {}, "task_distillation": ["a"]}, "students is empty; name at least one"),
    ],
)
def test_a_mistake_in_a_variant_is_told_before_the_first_job(tmp_path, variant, changes, message):
    plan = {"base": "few_tokens", "teacher": "T", "corpus": ["text.txt"], "heldout": [], "data": None}
    plan |= {"students": {"a": {}}, "tasks": ["rte"], "variants": {"v": variant}}
    with pytest.raises(UserError, match=message):
        Study(**plan | changes).check()


def test_what_concerns_teachers_or_texts_is_left_out_where_there_are_none():
    given = {"epochs": 1, "match": [{"loss": "mse"}], "teacher_weights": [1.0, 2.0], "augmented_copies": 2}
    study = Study("few_tokens", "T", ["text.txt"], [], None, {"a": {}}, ["rte"], finetune=given)
    kept = [
        (Variant("a"), ["epochs"]),
        (Variant("a", True), ["epochs", "match"]),
        (Variant("a", True, "all"), ["epochs", "match", "teacher_weights"]),
        (Variant("a", True, "median", True), ["epochs", "match", "augmented_copies"]),
    ]
    for variant, names in kept:
        assert list(study.get_finetune_settings("rte", variant)[1]) == names


def test_a_term_that_a_student_does_not_have_is_told_before_the_first_job(tmp_path):
    teacher = str(save_encoder("bert", tmp_path / "teacher"))
    for entry, message in (
        ({"loss": "mze"}, r"v: finetune\.match\[0\]\.loss = mze: no such loss; did you mean mse"),
        ({"loss": "mse", "layers": [[1, 0]]}, r"v: finetune\.match\[0\]\.layers: student layer 1: the student has 1"),
        ({"loss": "mse", "layers": "mapped"}, None),
    ):
        variants = {"v": Variant("a", True, finetune={"match": [entry]})}
        study = Study("few_tokens", teacher, ["t"], [], None, {"a": {}}, ["rte"], variants=variants)
        recipe = Recipe()
        recipe.student.num_layers = 1
        if message is None:
            check_finetunings(study, {"a": recipe}, {"rte, v"})
            continue
        with pytest.raises(UserError, match=message):
            check_finetunings(study, {"a": recipe}, {"rte, v"})
        check_finetunings(study, {"a": recipe}, set())  # finished


def test_a_student_of_low_rank_is_not_quantized_in_a_fine_tuning(tmp_path):
    teacher = str(save_encoder("bert", tmp_path / "teacher"))
    study = Study("few_tokens", teacher, ["t"], [], None, {"a": {}}, ["rte"], finetune={"quantize": "onnx-int8"})
    recipe = Recipe()
    recipe.student.num_layers = 1
    check_finetunings(study, {"a": recipe}, {"rte, a"})
    recipe.student.linear_rank = 4
    with pytest.raises(
        UserError, match="a: finetune.quantize: quantization-aware training does not work with linear_rank = 4"
    ):
        check_finetunings(study, {"a": recipe}, {"rte, a"})
    check_finetunings(study, {"a": recipe}, set())  # finished


def test_a_variant_may_not_take_a_students_folder(tmp_path):
    study = Study("few_tokens", "T", ["text.txt"], [], None, {"a": {}}, ["rte"], variants={"a": Variant("a")})
    with pytest.raises(UserError, match="'a' and 'a' would share the folder a; rename one of them"):
        study.check()


def test_a_variants_keys_are_read_as_they_are_written():
    with pytest.raises(UserError, match="variants.v.studnt: no such key; did you mean student"):
        check_command(["study", "--variants", "{v: {studnt: a}}", "--output", "x"])
    with pytest.raises(UserError, match="variants.v.student is missing"):
        check_command(["study", "--variants", "{v: {}}", "--output", "x"])
