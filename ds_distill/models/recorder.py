"""Records the queries, keys and values of an encoder's layers, by hooks on the modules that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from ds_distill.models.families import get_family

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from ds_distill.models.intermediates import Site

PROJECTIONS = ("query", "key", "value")


class Recorder:
    """A context in which the outputs of some of a model's projections are kept.

    Attention maps are not needed for this, which only slow attention computes. Gradients flow into what is
    recorded, also where the layers are recomputed in the backward pass.

    Attributes:
        states: By site, the queries, keys or values [B, L, H], once the context has ended: the output of the layer's
            projection, with `Family.split_projections` where one module computes all three.
    """

    def __init__(self, model: PreTrainedModel, sites: Sequence[Site]):
        """Prepare the model; hooks stay on it, so that code that is compiled with them remains valid.

        Args:
            model: The model.
            sites: Queries, keys and values of layers.
        """
        self.states: dict[Site, Tensor] = {}
        self._model = model
        self._slots = {site: _slot_of(model, site) for site in sites}

    def __enter__(self) -> Recorder:
        for slot in self._slots.values():
            slot.records = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.states = self._read_slots() if error is None else {}
        for slot in self._slots.values():
            slot.records, slot.outputs = False, []
        if error is None and len(self.states) < len(self._slots):
            missing = ", ".join(f"{site.quantity} {site.layer}" for site in self._slots if site not in self.states)
            raise RuntimeError(f"the encoder has not computed {missing}")

    def _read_slots(self) -> dict[Site, Tensor]:
        """Return what the slots hold, by site."""
        family, encoder = get_family(self._model), get_family(self._model).get_encoder(self._model)
        turns = {site: _turn(self._model, site) for site in self._slots}
        outputs = {
            site: slot.outputs[turns[site]] for site, slot in self._slots.items() if turns[site] < len(slot.outputs)
        }
        if family.split_projections is None:
            return outputs
        layers = family.get_layers(self._model)
        of_layer = {site.layer: output for site, output in outputs.items()}
        parts = {layer: family.split_projections(encoder, layers[layer], output) for layer, output in of_layer.items()}
        return {site: parts[site.layer][PROJECTIONS.index(site.quantity)] for site in outputs}


class _Slot:
    """Where a hook puts the output of a module.

    Attributes:
        outputs: What the module returned, each time that it ran.
        turns: How many of these are kept.
        records: Whether the hook puts it here: not in the backward pass, where gradient checkpointing computes layers
            again.
    """

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.turns = 1
        self.records = False


def _keep(module: Any, inputs: Any, output: Tensor) -> None:
    slot = module.recording_slot
    # DeBERTa runs the projections of tokens on its relative positions too, afterwards.
    if slot.records and len(slot.outputs) < slot.turns:
        slot.outputs.append(output)


def _slot_of(model: PreTrainedModel, site: Site) -> _Slot:
    """Return the slot of a site, and make it at its first use."""
    family = get_family(model)
    layer = family.get_layers(model)[family.layer_places(model.config)[site.layer]]
    module = layer.get_submodule(family.projections[PROJECTIONS.index(site.quantity)])
    slot = vars(module).get("recording_slot")
    if slot is None:
        slot = module.recording_slot = _Slot()
        # It comes after the hooks of ZeRO-3, so that what it sees has passed through the operation that gathers the
        # module's weights for its backward.
        module.register_forward_hook(_keep)
    slot.turns = max(slot.turns, 1 + _turn(model, site))
    if layer._compiled_call_impl is not None and torch._dynamo.config.skip_nnmodule_hook_guards:
        # By default compiled code does not look for hooks, so that of one layer would serve all others.
        torch._dynamo.config.skip_nnmodule_hook_guards = False
        torch.compiler.reset()
    return slot


def _turn(model: PreTrainedModel, site: Site) -> int:
    """Return how many layers below a site have its layer's weights, and so run its modules before it."""
    family = get_family(model)
    layers, places = family.get_layers(model), family.layer_places(model.config)
    return sum(layers[place] is layers[places[site.layer]] for place in places[: site.layer])
