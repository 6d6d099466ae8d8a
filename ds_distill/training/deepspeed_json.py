"""Checks of a DeepSpeed JSON with DeepSpeed's own parser before anything is prepared.

Where DeepSpeed would raise a traceback or silently ignore a key, these checks raise one sentence.
"""

from __future__ import annotations

import difflib
import functools
import json
import typing
from collections.abc import Iterator, KeysView

from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from pydantic import ValidationError

from ds_distill.utils.errors import UserError, did_you_mean

OWNED_BY_RECIPE = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "fp16",
    "bf16",
    "bfloat16",
)
# DeepSpeed's names of what the recipe does in any case
RECIPE_TYPES = {"optimizer": ("adamw", "adam"), "scheduler": ("warmupdecaylr",)}
# DeepSpeed reads these keys outside its parser.
BESIDE_PARSER = ("vocabulary_size", "sequence_parallel_size", "data_parallel_size")
# Besides these, a JSON may only say what DeepSpeed does in any case: sharding and communication, what offload to disks
# needs, and reports that leave the results as they are.
ALLOWED = (
    "zero_optimization",
    "communication_data_type",
    "data_types",
    "aio",
    "zero_allow_untested_optimizer",
    "comms_logger",
    "flops_profiler",
    "wall_clock_breakdown",
    "memory_breakdown",
    "timers",
    "steps_per_print",
    "dump_state",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "comet",
)
# What to use in place of another key that decides something.
REPLACED = {
    "activation_checkpointing": "training.gradient_checkpointing of the recipe recomputes activations",
    "amp": "training.precision of the recipe decides the number format",
    "torch_autocast": "training.precision of the recipe decides the number format",
    "quantize_training": "`ds-distill export --format onnx-int8` quantizes the trained student",
    "compression_training": "student.num_layers and student.hidden_size of the recipe make a student smaller",
    "progressive_layer_drop": "student.num_layers of the recipe decides which layers there are",
    "curriculum_learning": "data.mode and training.seed of the recipe decide the order of the batches",
    "data_efficiency": "data.mode and training.seed of the recipe decide the order of the batches",
    "dataloader_drop_last": "training.global_batch_size of the recipe decides the batches",
    "managed_gradient_accumulation": "training.global_batch_size and micro_batch_size of the recipe decide it",
    "elasticity": "training.global_batch_size of the recipe stays the same on any number of ranks",
    "checkpoint": "training.save_every of the recipe decides when checkpoints are written",
    "nebula": "training.save_every of the recipe decides when checkpoints are written",
    "autotuning": "`ds-distill estimate` says what fits, and training.micro_batch_size = auto chooses it",
}
# DeepSpeed accepts these keys, but here they would have no effect or break the run after its corpus
# is prepared.
NOT_HERE = {
    "torch_autocast.enabled": "training.precision decides the number format",
    "hybrid_engine.enabled": "it is for models that generate text",
    "tensor_parallel.autotp_size": "a student is not divided among devices",
    "pipeline": "a student is not divided among devices",
    "checkpoint.writer": "checkpoints are written by DeepSpeed's usual writer",
    "data_efficiency.enabled": "batches and their order are the recipe's",
    "curriculum_learning.enabled": "batches and their order are the recipe's",
    "autotuning.enabled": "DeepSpeed's autotuner starts jobs of its own; `ds-distill estimate` says what fits",
    "zero_optimization.cpu_offload": 'its name is now offload_optimizer: {"device": "cpu"}',
    "zero_optimization.cpu_offload_params": 'its name is now offload_param: {"device": "cpu"}',
}
COMMENT = ("_", "#", "/")  # beginnings of keys that people write notes under, since JSON has no comments


class Watched(dict):
    """A dict that records which of its keys have been asked for; the dicts in it do too.

    Attributes:
        asked: Those keys, in the order of the last request for each.
        whole: Whether somebody iterated over all of them.
    """

    def __init__(self, values: dict):
        super().__init__({key: Watched(value) if isinstance(value, dict) else value for key, value in values.items()})
        self.asked: dict[str, None] = {}
        self.whole = False

    def _ask(self, key: typing.Any) -> None:
        self.asked.pop(key, None)
        self.asked[key] = None

    def __contains__(self, key: object) -> bool:
        self._ask(key)
        return super().__contains__(key)

    def __getitem__(self, key: str):
        self._ask(key)
        return super().__getitem__(key)

    def get(self, key: str, default=None):
        self._ask(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:
        self.whole = True
        return super().__iter__()

    # with dict's own keys(), whose class cannot be extended, `key in d.keys()` would go unrecorded
    def keys(self) -> KeysView:  # type: ignore[override]
        return _Keys(self)

    def items(self):
        self.whole = True
        return super().items()


class _Keys(KeysView):
    _mapping: Watched

    def __contains__(self, key: object) -> bool:
        return key in self._mapping


def without_recipe_settings(given: str, content: dict) -> dict:
    """Return the JSON's contents without the settings that the recipe owns.

    The JSON must leave those open: "auto", or a section of "auto", as in Hugging Face's JSONs.

    Args:
        given: What errors begin with.
        content: The JSON's contents.

    Raises:
        UserError: The JSON decides a setting that the recipe owns.
    """
    for key in OWNED_BY_RECIPE:
        if key in content and (decided := _decided(key, content[key])) is not None:
            raise UserError(
                f'{given}: {decided} belongs to the recipe\'s training section; remove it there or say "auto"'
            )
    for key, reason in NOT_HERE.items():
        section, _, name = key.partition(".")
        value = content.get(section)
        value = value.get(name) if name and isinstance(value, dict) else None if name else value
        if not _is_off(value):
            raise UserError(f"{given}: {key} = {_shown(value)}: {reason}; remove it")
    if str(op := content.get("gradient_allreduce_op", "mean")).lower() == "sum":
        raise UserError(
            f'{given}: gradient_allreduce_op = "{op}": the losses are already divided by counts over all ranks, '
            "which DeepSpeed's mean keeps and its sum would multiply by the number of ranks; remove it"
        )
    for key, value in content.items():
        if key in _known_keys() and key not in (*ALLOWED, *OWNED_BY_RECIPE) and not _is_off(value):
            reason = REPLACED.get(key, "a recipe does not need it, and it could change what a run computes")
            raise UserError(f"{given}: {key} = {_shown(value)}: {reason}; remove it")
    return {key: value for key, value in content.items() if key not in OWNED_BY_RECIPE}


@functools.cache
def _known_keys() -> frozenset[str]:
    """Return all keys outside sections that DeepSpeed reads."""
    watched = Watched({"train_micro_batch_size_per_gpu": 1})
    DeepSpeedConfig(watched)
    return frozenset((*watched.asked, *BESIDE_PARSER))


def _is_off(value: object) -> bool:
    """Return whether a key with this value decides nothing: it is open, a neutral number, or switched off."""
    if isinstance(value, dict):
        return not value.get("enabled", True) or all(_is_off(inner) for inner in value.values())
    return not value or value in ("auto", "mean") or (value == 1 and not isinstance(value, bool))


def _decided(key: str, value: object) -> str | None:
    """Return the dotted key and value by which the JSON decides a recipe's setting; None where it changes nothing."""
    if value == "auto":
        return None
    if not isinstance(value, dict):
        return f"{key} = {json.dumps(value)}"
    known = {"fp16": DeepSpeedFP16Config, "bf16": DeepSpeedBF16Config, "bfloat16": DeepSpeedBF16Config}
    usual = known[key]().model_dump() | {"enabled": "auto"} if key in known else {}
    for name, inner in value.items():
        if name == "params" and isinstance(inner, dict):
            decided = next(
                (f"params.{_word(deep)} = {json.dumps(x)}" for deep, x in inner.items() if x != "auto"), None
            )
        elif (
            inner == "auto"
            or (name in usual and inner == usual[name])
            or (name == "type" and str(inner).lower() in RECIPE_TYPES.get(key, ()))
        ):
            decided = None
        else:
            decided = f"{_word(name)} = {json.dumps(inner)}"
        if decided is not None:
            return f"{key}.{decided}"
    return None


def check_deepspeed_json(given: str, content: dict, config: dict) -> None:
    """Raise UserError for a key of the JSON that DeepSpeed does not read, and for a value that it does not take.

    Args:
        given: What errors begin with.
        content: The JSON's contents.
        config: The config for DeepSpeed, with the recipe's settings put in.
    """
    watched = Watched(config)
    try:
        DeepSpeedConfig(watched)
    except ValidationError as error:
        raise UserError(f"{given}: {_describe_error(error, watched)}") from error
    except Exception as error:  # its parser raises whatever breaks first
        place, value = _last_asked(watched)
        words = " ".join(str(error).split())[:300]
        if isinstance(error, AttributeError | TypeError | KeyError):
            words = f"no value that DeepSpeed takes ({words})"
        named = place.split(".")[-1] in words and isinstance(value, str | dict)
        raise UserError(f"{given}: {words}" if named else f"{given}: {place} = {_shown(value)}: {words}") from error
    known = {*watched.asked, *BESIDE_PARSER}
    for key in content:
        if key not in known and not key.startswith(COMMENT):
            raise UserError(
                f"{given}: {_word(key)}: no key that DeepSpeed reads"
                f"{did_you_mean(key, known, 0.6) or '; correct it, or take it out'}"
            )
        section = dict.get(watched, key)
        # Typed sections check their keys themselves. In the others DeepSpeed may leave known keys
        # unread, so only a key that is similar to one that it asked for is a typo.
        if isinstance(section, Watched) and section.asked and not section.whole:
            for name in dict.keys(section) - section.asked.keys():
                if near := difflib.get_close_matches(name, list(section.asked), n=1, cutoff=0.85):
                    raise UserError(
                        f"{given}: {key}.{_word(name)}: no key that DeepSpeed reads; did you mean {near[0]}?"
                    )


def _describe_error(error: ValidationError, watched: Watched) -> str:
    """Return the first complaint of a typed section: dotted key, value, and what is wrong."""
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"]]
    # DeepSpeed merges the sections of its monitors before it checks them
    place = _dotted(loc if loc and isinstance(dict.get(watched, loc[0]), Watched) else [_last_asked(watched)[0], *loc])
    if first["type"] == "extra_forbidden":
        return (
            f"{place}: no key that DeepSpeed reads"
            f"{did_you_mean(loc[-1], _fields(error.title, loc[:-1]), 0.6) or '; correct it, or take it out'}"
        )
    message = first["msg"].removeprefix("Assertion failed, ").removeprefix("Value error, ")
    return f"{place} = {_shown(first['input'])}: {message[:1].lower()}{message[1:]}" if loc else f"{place}: {message}"


def _fields(title: str, loc: list[str]) -> list[str]:
    """Return the keys of DeepSpeed's typed section: start at class `title`, then follow each key of `loc` in turn."""
    classes = {kind.__name__: kind for kind in _kinds(DeepSpeedConfigModel)}
    kind = classes.get(title)
    for name in loc:
        annotation = kind.model_fields[name].annotation if kind and name in kind.model_fields else None
        kind = next(
            (
                k
                for k in (annotation, *typing.get_args(annotation))
                if isinstance(k, type) and issubclass(k, DeepSpeedConfigModel)
            ),
            None,
        )
    return list(kind.model_fields) if kind else []


def _kinds(kind: type[DeepSpeedConfigModel]) -> Iterator[type[DeepSpeedConfigModel]]:
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


def _last_asked(watched: Watched) -> tuple[str, object]:
    """Return (dotted key, value) that DeepSpeed looked at last."""
    place: list[str] = []
    value: object = watched
    # DeepSpeed copies the outermost dict first, so that one counts as iterated over in any case
    while isinstance(value, Watched) and value.asked and not (place and value.whole):
        key = next(reversed(value.asked))
        place.append(key)
        value = dict.get(value, key)
    return _dotted(place), value


def _dotted(path: list[str]) -> str:
    return ".".join(map(_word, path))


def _word(key: str) -> str:
    """Return a key as it is shown: in quotes where it is not a plain word."""
    return key if key.strip() == key and key.isprintable() and key else json.dumps(key)


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:80]} …"
