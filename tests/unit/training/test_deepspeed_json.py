"""DeepSpeed's own parser reads a DeepSpeed JSON before anything is prepared.

A mistake in it is reported in one sentence with the key.
"""

import json
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_distill.preflight.checks import check_engine, check_machine
from ds_distill.recipe import Recipe, Training
from ds_distill.training.deepspeed_config import deepspeed_config
from ds_distill.training.deepspeed_json import (
    ALLOWED,
    BESIDE_PARSER,
    OWNED_BY_RECIPE,
    REPLACED,
    Watched,
    check_deepspeed_json,
)
from ds_distill.utils.errors import UserError

SHIPPED = sorted((Path(__file__).parents[3] / "ds_configs" / "deepspeed").glob("*.json"))


def check(config: dict) -> None:
    check_deepspeed_json("d.json", config, {"train_micro_batch_size_per_gpu": 1} | config)


def recipe_with(tmp_path, config: dict, **options) -> Recipe:
    (tmp_path / "d.json").write_text(json.dumps(config))
    return Recipe(training=Training(deepspeed=str(tmp_path / "d.json"), **options))


def top_level_keys() -> list[str]:
    """Return all keys that DeepSpeed's parser asks for."""
    watched = Watched({"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(watched)
    return sorted(watched.asked)


@pytest.mark.parametrize(
    "config, words",
    [
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_sise": 1000}},
            "zero_optimization.reduce_bucket_sise: .*did you mean reduce_bucket_size",
        ),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": 0}},
            "zero_optimization.reduce_bucket_size = 0: input should be greater than 0",
        ),
        (
            {"zero_optimization": {"stage": 2, "allgather_bucket_size": 0.9}},
            "zero_optimization.allgather_bucket_size = 0.9: .*integer",
        ),
        (
            {"zero_optimization": {"stage": 2, "overlap_comm": "yep"}},
            'zero_optimization.overlap_comm = "yep": .*boolean',
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "offload_optimizer.devise: .*did you mean device",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "gpu"}}},
            'offload_optimizer.device = "gpu": .*cpu',
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "zero_optimization: Partial offloading only",
        ),
        ({"zero_optimization": {"mics_shard_size": 2}}, "zero_optimization.mics_shard_size = 2: .*removed"),
        (
            {"zero_optimisation": {"stage": 2}},
            "zero_optimisation: no key that DeepSpeed reads; did you mean zero_optimization",
        ),
        ({"amp": {"enabled": True}}, "amp = .*removed"),
        ({"fp32_allreduce": True}, "fp32_allreduce: no key that DeepSpeed reads; correct it, or take it out"),
        (
            {"activation_checkpointing": {"partition_activation": True}},
            "activation_checkpointing.partition_activation: .*partition_activations",
        ),
        ({"activation_checkpointing": [1]}, r"activation_checkpointing = \[1\]: no value that DeepSpeed takes"),
        ({"tensorboard": {"enabled": True, "job_nam": "x"}}, "tensorboard.job_nam: .*did you mean job_name"),
        ({"comms_logger": {"verbos": True}}, "comms_logger.verbos: .*did you mean verbose"),
        ({"timers": {"throughput": {"enabled": "x"}}}, 'timers.throughput.enabled = "x"'),
        ({"data_types": {"grad_acum_dtype": "fp32"}}, "data_types.grad_acum_dtype: .*did you mean grad_accum_dtype"),
        ({"communication_data_type": "fp8"}, "communication_data_type"),
        ({"wall_clock_breakdown": "no"}, 'wall_clock_breakdown = "no"'),
        ({"torch_autocast": {"enabled": True, "dtype": "fp19"}}, 'torch_autocast.dtype = "fp19"'),
    ],
)
def test_what_is_wrong_is_named(config, words):
    with pytest.raises(UserError, match=f"^d.json: .*{words}"):
        check(config)


@pytest.mark.parametrize("key", sorted(DeepSpeedZeroConfig.model_fields))
def test_each_misspelt_key_of_zero_is_named_with_the_right_one(key):
    with pytest.raises(UserError) as caught:
        check({"zero_optimization": {"stage": 2, f"{key[:-2]}x{key[-1]}": 1}})
    assert f"zero_optimization.{key[:-2]}x{key[-1]}: no key that DeepSpeed reads; did you mean {key}?" in str(
        caught.value
    )


@pytest.mark.parametrize("key", top_level_keys())
def test_each_misspelt_section_is_named_with_the_right_one(key):
    with pytest.raises(UserError, match=f"d.json: x{key}: no key that DeepSpeed reads"):
        check({f"x{key}": {}})


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["auto", "cpu", "nvme", "fp32", "bf16"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from([*DeepSpeedZeroConfig.model_fields, "enabled", "device", "params", "type"])
            | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=4,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from(top_level_keys()) | st.text(max_size=8), VALUES, max_size=3))
def test_any_json_is_taken_or_answered_in_a_sentence(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("json") / "d.json"
    file.write_text(json.dumps(content))
    training = Training(deepspeed=str(file))
    try:
        config = deepspeed_config(training, 1, torch.float32)
        check_deepspeed_json(f"training.deepspeed = {file}", training.deepspeed_json(), config)
    except UserError as error:
        assert "\n" not in str(error) and str(file) in str(error)


@pytest.mark.parametrize(
    "config",
    [
        *[json.loads(file.read_text()) for file in SHIPPED],
        {"_comment": "mine", "//": "a note", "zero_optimization": {"stage": 1}},
        {
            "zero_optimization": {
                "stage": 3,
                "stage3_max_live_parameters": 1e9,
                "reduce_bucket_size": "auto",
                "overlap_comm": "auto",
                "offload_param": {"device": "none"},
                "sub_group_size": 1e9,
                "stage3_gather_16bit_weights_on_model_save": True,
            }
        },
        {
            "activation_checkpointing": {"partition_activations": True, "profile": True},
            "wandb": {"enabled": False, "team": "x"},
            "flops_profiler": {
                "enabled": False,
                "profile_step": 1,
                "module_depth": -1,
                "top_modules": 1,
                "detailed": True,
            },
            "aio": {
                "block_size": 1048576,
                "queue_depth": 8,
                "thread_count": 1,
                "single_submit": False,
                "overlap_events": True,
            },
            "data_efficiency": {"enabled": False, "seed": 1, "data_sampling": {"enabled": False, "num_epochs": 3}},
            "pipeline": {"stages": 2},
            "checkpoint": {"tag_validation": "Warn", "use_node_local_storage": True},
            "autotuning": {"enabled": False, "fast": False},
        },
        {
            key: False
            for key in (
                "prescale_gradients",
                "zero_allow_untested_optimizer",
                "dump_state",
                "memory_breakdown",
                "dataloader_drop_last",
            )
        },
        {"steps_per_print": 2000, "gradient_predivide_factor": 2.0, **dict.fromkeys(BESIDE_PARSER, 8)},
    ],
)
def test_what_is_right_is_taken(config):
    check(config)


AUTO = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {
        "type": "WarmupDecayLR",
        "params": {"warmup_max_lr": "auto", "warmup_num_steps": "auto", "total_num_steps": "auto"},
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}


def test_what_hugging_faces_jsons_leave_open_is_left_to_the_recipe(tmp_path):
    """The sections are those of transformers' own examples."""
    recipe = recipe_with(tmp_path, AUTO | {"zero_optimization": {"stage": 2}}, precision="bf16")
    result = deepspeed_config(recipe.training, 4, torch.bfloat16)
    assert result["bf16"] == {"enabled": True} and result["gradient_accumulation_steps"] == 4
    assert not set(result) & {"fp16", "optimizer", "scheduler"}
    check_machine(recipe)


def test_a_type_for_sums_over_accumulation_that_16_bit_replaces_is_named(tmp_path, capsys):
    config = {"data_types": {"grad_accum_dtype": "bf16"}, "zero_optimization": {"stage": 1}}
    training = recipe_with(tmp_path, config, precision="bf16").training
    assert deepspeed_config(training, 1, torch.float32)["data_types"] == {"grad_accum_dtype": "bf16"}, (
        "in fp32 it stands"
    )
    assert "not used" not in capsys.readouterr().err
    result = deepspeed_config(training, 1, torch.bfloat16)
    assert result["communication_data_type"] == "fp32" and result["data_types"] == {"grad_accum_dtype": "fp32"}
    assert 'data_types = {"grad_accum_dtype": "bf16"} is not used' in capsys.readouterr().err


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_type_for_sums_over_ranks_is_the_users(tmp_path, capsys, stage):
    config = {"communication_data_type": "bf16", "zero_optimization": {"stage": stage}}
    recipe = recipe_with(tmp_path, config, precision="bf16", optimizer="torch")
    assert deepspeed_config(recipe.training, 1, torch.bfloat16)["communication_data_type"] == "bf16"
    assert "gradients are rounded to it before they are summed over ranks" in capsys.readouterr().err
    check_machine(recipe)
    check_engine(recipe)


@pytest.mark.parametrize(
    "config, keys",
    [
        ({"communication_data_type": "bf16"}, {"communication_data_type"}),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
            {"zero_optimization.zero_quantized_gradients"},
        ),
        ({"communication_data_type": "fp32", "zero_optimization": {"stage": 2, "overlap_comm": True}}, set()),
    ],
)
def test_what_changes_results_is_part_of_a_runs_identity(tmp_path, config, keys):
    changed = recipe_with(tmp_path, config).identity().keys() - Recipe().identity().keys()
    assert changed == {f"training.deepspeed.{key}" for key in keys}


@pytest.mark.parametrize("key", sorted({*top_level_keys(), *REPLACED} - {*ALLOWED, *OWNED_BY_RECIPE}))
def test_a_key_that_is_not_the_users_is_refused_with_what_replaces_it(tmp_path, key):
    with pytest.raises(UserError, match=f"d.json: {key}(.enabled)? = .*; remove it$"):
        deepspeed_config(recipe_with(tmp_path, {key: {"enabled": True}}).training, 1, torch.float32)
    for off in (False, "auto", {"enabled": False, "rounds": 3}):
        deepspeed_config(recipe_with(tmp_path, {key: off}).training, 1, torch.float32)


@pytest.mark.parametrize(
    "config, words",
    [
        (
            {"hybrid_engine": {"enabled": True}},
            "hybrid_engine.enabled = true: it is for models that generate text; remove it",
        ),
        (
            {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}},
            "torch_autocast.enabled = true: training.precision decides",
        ),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size = 2: a student is not divided"),
        ({"pipeline": {"stages": 2}}, "pipeline = .*: a student is not divided"),
        ({"data_efficiency": {"enabled": True}}, "data_efficiency.enabled"),
        ({"autotuning": {"enabled": True}}, "autotuning.enabled"),
        (
            {"zero_optimization": {"stage": 2, "cpu_offload": True}},
            "zero_optimization.cpu_offload = true: its name is now offload_optimizer",
        ),
        ({"checkpoint": {"writer": {"type": "fast"}}}, "checkpoint.writer"),
    ],
)
def test_what_a_job_cannot_use_is_refused_before_it_begins(tmp_path, config, words):
    with pytest.raises(UserError, match=f"d.json: {words}"):
        check_machine(recipe_with(tmp_path, config))


def test_what_is_switched_off_is_taken(tmp_path):
    off = {
        "hybrid_engine": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "tensor_parallel": {"autotp_size": 1},
        "data_efficiency": {"enabled": False},
    }
    check_machine(recipe_with(tmp_path, off))


def test_a_monitor_that_cannot_write_is_named(tmp_path):
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "logs")
    with pytest.raises(
        UserError, match=f"d.json: csv_monitor.output_path = {path}: Not a directory; choose another folder"
    ):
        check_machine(recipe_with(tmp_path, {"csv_monitor": {"enabled": True, "output_path": path}}))


def test_sums_over_ranks_are_refused(tmp_path):
    deepspeed_config(recipe_with(tmp_path, {"gradient_allreduce_op": "mean"}).training, 1, torch.float32)
    for value in ("sum", "SUM"):
        with pytest.raises(UserError, match=f'd.json: gradient_allreduce_op = "{value}": .*; remove it'):
            deepspeed_config(recipe_with(tmp_path, {"gradient_allreduce_op": value}).training, 1, torch.float32)


@pytest.mark.parametrize(
    "config, words",
    [
        ({"fp16": {"enabled": True}}, "fp16.enabled = true"),
        ({"fp16": AUTO["fp16"] | {"loss_scale_window": 500}}, "fp16.loss_scale_window = 500"),
        ({"bf16": {"enabled": False}}, "bf16.enabled = false"),
        ({"bfloat16": {"enabled": True}}, "bfloat16.enabled = true"),
        ({"optimizer": {"type": "Lamb", "params": {"lr": "auto"}}}, 'optimizer.type = "Lamb"'),
        ({"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}, "optimizer.params.lr = 0.0001"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto"}}}, 'scheduler.type = "WarmupLR"'),
        ({"train_batch_size": 8}, "train_batch_size = 8"),
        ({"gradient_clipping": 1.0}, "gradient_clipping = 1.0"),
    ],
)
def test_what_a_json_decides_in_the_recipes_place_is_named(tmp_path, config, words):
    assert set(config) <= set(OWNED_BY_RECIPE)
    with pytest.raises(UserError, match=f"{words} belongs to the recipe's training section"):
        deepspeed_config(recipe_with(tmp_path, config).training, 1, torch.float32)


@pytest.mark.parametrize(
    "text, words",
    [
        (
            '{"zero_optimization": {"stage": 1}, "zero_optimization": {"stage": 2}}',
            "the key zero_optimization is given twice",
        ),
        ('{"zero_optimization": {"stage": 1, "stage": 2}}', "the key stage is given twice"),
        ("[" * 100_000, "not valid JSON"),
        ("{'a': 1}", "not valid JSON"),
    ],
)
def test_a_text_that_is_not_one_meaning(tmp_path, text, words):
    (tmp_path / "d.json").write_text(text)
    with pytest.raises(UserError, match=words):
        Training(deepspeed=str(tmp_path / "d.json")).deepspeed_json()


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    (tmp_path / "d.json").write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8-sig")
    assert Training(deepspeed=str(tmp_path / "d.json")).deepspeed_json() == {"zero_optimization": {"stage": 1}}


def test_a_monitor_writes_nothing_while_settings_are_looked_at(tmp_path):
    check_engine(
        recipe_with(
            tmp_path,
            {"csv_monitor": {"enabled": True, "output_path": str(tmp_path / "made"), "job_name": "x"}},
            precision="fp32",
        )
    )
    assert not (tmp_path / "made").exists()


def test_an_offload_that_is_left_open_is_none(tmp_path):
    config = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "auto"}}}
    check_engine(recipe_with(tmp_path, config, precision="fp32", optimizer="torch"))


@pytest.mark.parametrize(
    "config, options, words",
    [
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, {}, "nvme_path"),
        (
            {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}},
            {},
            "Zenflow must be used with cpu offload",
        ),
        (
            {"zero_optimization": {"stage": 3, "zero_quantized_weights": True}},
            {},
            "d.json: zero_optimization.zero_quantized_weights: DeepSpeed fails to start",
        ),
        (
            {"data_types": {"grad_accum_dtype": "foo"}},
            {},
            "d.json: data_types: DeepSpeed fails to start with it .*'foo'",
        ),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            {"optimizer": "torch"},
            "optimizer = torch: optimizer offload",
        ),
    ],
)
def test_what_deepspeed_asks_for_only_when_it_starts_is_asked_first(tmp_path, config, options, words):
    recipe = recipe_with(tmp_path, config, precision="fp32", **options)
    check_machine(recipe)
    with pytest.raises(UserError, match=words):
        check_engine(recipe)


def test_a_monitor_without_its_package_is_named(tmp_path):
    with pytest.raises(UserError, match="comet.enabled = true: needs the package comet_ml"):
        check_machine(recipe_with(tmp_path, {"comet": {"enabled": True}}))


@pytest.mark.parametrize("file", [file.name for file in SHIPPED if "offload" not in file.name])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_shipped_files_start(file, precision):
    recipe = Recipe(training=Training(deepspeed=f"ds_configs/deepspeed/{file}", precision=precision))
    check_machine(recipe)
    check_engine(recipe)
