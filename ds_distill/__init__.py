"""Distill pretrained encoders into small ones during pretraining, on DeepSpeed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ds_distill.api import Evaluation, RunSummary, distill, evaluate, export, pretrain, prune
    from ds_distill.config.pruning import Pruning
    from ds_distill.loaded import load
    from ds_distill.recipe import Recipe

__version__ = "0.1.0"
__all__ = [
    "Evaluation",
    "Pruning",
    "Recipe",
    "RunSummary",
    "distill",
    "evaluate",
    "export",
    "load",
    "pretrain",
    "prune",
]


def __getattr__(name: str) -> Any:
    if name == "load":
        from ds_distill.loaded import load

        return load
    if name in __all__:
        from ds_distill import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
