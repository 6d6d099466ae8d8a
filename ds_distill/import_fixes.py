"""Every change that is made to torch, transformers and accelerate at run time: they load what no command here uses.

transformers 5.23 and accelerate 1.15.0 with torch 2.13 import torch._dynamo, which compiles, and with it sympy; they
import torch.distributed.tensor, which shards tensors, and scipy.optimize, which matches boxes in images. That takes
longer than all that a command does need. torch._dynamo is loaded as usual by what compiles, and then works as usual.

Only the command line calls this: in a program that imports ds_distill, these libraries are the program's own.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from types import ModuleType
from typing import Any
from unittest import mock

# these imports were read in these releases only
RELEASES = {"torch": "2.13.", "transformers": "5.23.", "accelerate": "1.15."}


def _are_known() -> bool:
    """Return whether these are the releases whose imports were read; in others, starts take longer."""
    return all(version(name).startswith(release) for name, release in RELEASES.items())


@functools.cache
def defer_unused_imports() -> None:
    """Import transformers' models without what loads unused, in known releases."""
    if not _are_known():
        return
    import torch
    import transformers

    optimizer = torch.optim.Optimizer
    for function in (
        optimizer.add_param_group,
        optimizer.state_dict,
        optimizer.load_state_dict,
        optimizer.zero_grad,
        # from_pretrained initializes models on the device "meta" with these
        torch._refs.normal,
        torch._refs.mul,
        torch._refs.add,
    ):
        _keep_dynamo_unloaded(function)
    with _unused_libraries_hidden():
        import accelerate.utils.other
        import transformers.masking_utils
        import transformers.modeling_layers  # noqa: F401
    for question, library in (
        ("is_compiled_module", "torch._dynamo"),
        ("has_compiled_regions", "torch._dynamo"),
        ("is_torch_distributed_available", "torch.distributed.fsdp"),
    ):
        _answer_no_until_loaded(accelerate.utils.other, question, library)
    # huggingface_hub asks of each tensor whether torch.distributed.tensor shards it, where that can be imported
    model: Any = transformers.PreTrainedModel
    model.save_pretrained = _without_unloaded("torch.distributed.tensor", model.save_pretrained)


@functools.cache
def defer_trainers_imports() -> None:
    """Import transformers' Trainer without `datasets`, which it imports to know a data set of that library.

    Its optimizer and its clipping of gradients are kept from loading what they do not use.
    """
    if not _are_known():
        return
    import accelerate.accelerator
    import torch
    import transformers.utils

    with mock.patch.object(transformers.utils, "is_datasets_available", _no):
        import transformers.trainer
    _answer_no_until_loaded(transformers.trainer, "has_mixed_dtensor", "torch.distributed.tensor")
    _answer_no_until_loaded(accelerate.accelerator, "model_has_dtensor", "torch.distributed.tensor")
    accelerator: Any = accelerate.accelerator.Accelerator
    accelerator._clip_grad_norm_dtensor_aware = _clip_without_sharding(accelerator._clip_grad_norm_dtensor_aware)
    optimizer: Any = torch.optim.AdamW
    if not hasattr(optimizer.step, "hooked"):  # by a first optimizer, with torch's profiler around the step
        optimizer.step = _step_without_dynamo(optimizer.step)


def _clip_without_sharding(clip: Callable) -> Callable:
    """Return accelerate's clipping such that it loads no torch.distributed.tensor, which it looks for in gradients."""
    import torch

    @functools.wraps(clip)
    def call(self: Any, parameters: Any, max_norm: float, norm_type: float = 2) -> Any:
        if _is_loaded("torch.distributed.tensor"):
            return clip(self, parameters, max_norm, norm_type=norm_type)
        return torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type=norm_type)

    return call


def _step_without_dynamo(step: Callable) -> Callable:
    """Return an optimizer's step that loads no torch._dynamo, which it would tell not to compile it."""
    import torch

    inner: Any = inspect.getclosurevars(step).nonlocals["func"]

    @functools.wraps(step)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if _is_loaded("torch._dynamo"):
            return step(self, *arguments, **options)
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return inner(self, *arguments, **options)

    return call


def _answer_no_until_loaded(module: ModuleType, question: str, library: str) -> None:
    asked = getattr(module, question)
    setattr(module, question, lambda *about: _is_loaded(library) and asked(*about))


def _without_unloaded(library: str, function: Callable) -> Callable:
    """Return `function` such that it finds no `library` where nothing has loaded it."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if _is_loaded(library):
            return function(*arguments, **options)
        sys.modules[library] = None  # type: ignore[assignment]
        try:
            return function(*arguments, **options)
        finally:
            sys.modules.pop(library, None)

    return call


def _is_loaded(name: str) -> bool:
    return sys.modules.get(name) is not None


@contextlib.contextmanager
def _unused_libraries_hidden() -> Iterator[None]:
    """Have transformers find no scipy and no torch.distributed, and an empty torch._dynamo, within this context."""
    import transformers.utils
    from transformers.distributed import utils

    distributed: Any = utils
    is_dtensor = distributed.is_dtensor
    distributed.is_dtensor = lambda value: _is_loaded("torch.distributed.tensor") and is_dtensor(value)
    with contextlib.ExitStack() as stack:
        for module in (transformers.utils, transformers.utils.import_utils):
            for switch in ("is_scipy_available", "is_torch_distributed_available"):
                stack.enter_context(mock.patch.object(module, switch, _no))
        stack.enter_context(mock.patch.object(distributed, "_check_distributed_checkpointing_available", _no))
        if not _is_loaded("torch._dynamo"):
            for module in _placeholders():
                sys.modules[module.__name__] = module
                stack.callback(sys.modules.pop, module.__name__)
        yield


def _no() -> bool:
    return False


def _placeholders() -> list[ModuleType]:
    """Return modules with what transformers takes from torch._dynamo while it is imported."""
    package: Any = ModuleType("torch._dynamo")
    package.__path__ = []
    package.__getattr__ = lambda name: _unchanged  # marks of functions that no command calls
    module: Any = ModuleType("torch._dynamo._trace_wrapped_higher_order_op")
    module.TransformGetItemToIndex = _transform_get_item_to_index
    return [package, module]


def _transform_get_item_to_index() -> Any:
    from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex

    return TransformGetItemToIndex()


def _unchanged(function: Callable | None = None, *_: Any, **__: Any) -> Callable:
    return _unchanged if function is None else function


def _keep_dynamo_unloaded(function: Callable | None) -> None:
    """Have a function that torch keeps from being compiled run without torch._dynamo until something has loaded it.

    torch loads it at the function's first call, to make what it then keeps as `__dynamo_disable`. Wrappers around
    such a function, and within it, are searched for others.
    """
    while inspect.isfunction(function):
        inner: Any = inspect.getclosurevars(function).nonlocals.get("fn")
        if function.__code__.co_qualname == "_disable_dynamo.<locals>.inner":
            inner.__dynamo_disable = _disabled_once_dynamo_is_loaded(inner)
        function = inner


def _disabled_once_dynamo_is_loaded(function: Any) -> Callable:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if not _is_loaded("torch._dynamo"):
            return function(*arguments, **options)
        import torch._dynamo

        function.__dynamo_disable = torch._dynamo.disable(function, wrapping=False)
        return function.__dynamo_disable(*arguments, **options)

    return call
