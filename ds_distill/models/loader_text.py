"""The lines of Python that load a folder of pruned layers with transformers and torch alone, for its documentation."""

from __future__ import annotations

from transformers import PreTrainedModel

from ds_distill.models.families import get_family
from ds_distill.models.layer_shapes import is_pruned, layer_shapes

LOADER_LINE = "from safetensors.torch import load_file"  # by which a text that has the lines is known
LOADER = """import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, {kind}
from transformers.utils import cached_file

{{name}}
weights, config = load_file(cached_file(name, "model.safetensors")), AutoConfig.from_pretrained(name)
tokenizer, model = AutoTokenizer.from_pretrained(name), {kind}(config{options}).eval()
for path, linear in list(model.named_modules()):  # its layers have shapes of their own, those of the file
    shape = weights[f"{{path}}.weight"].shape if f"{{path}}.weight" in weights else ()
    if isinstance(linear, torch.nn.Linear) and shape and shape != linear.weight.shape:
        model.set_submodule(path, torch.nn.Linear(shape[1], shape[0]))
"""
EMPTY = """

class NoInputs(torch.nn.Module):  # a product whose inputs are all pruned: its bias is left
    def __init__(self, bias):
        super().__init__()
        self.bias = torch.nn.Parameter(bias)

    def forward(self, hidden):
        return self.bias.expand(*hidden.shape[:-1], -1)


class NoHeads(torch.nn.Module):  # attention whose heads are all pruned
    def forward(self, hidden, *args, **kwargs):
        return [*(part(hidden) for part in self.children()), hidden][0], None


"""


def loader_code(model: PreTrainedModel) -> str | None:
    """Return code that defines `model` and `tokenizer` from the folder `name`, with {name} in its place.

    None where the folder of a model of this config loads as a stock class.
    """
    if not is_pruned(model.config):
        return None
    family = get_family(model)
    bare = not family.has_head(model) and type(model).__name__.endswith("Model")
    options = ", add_pooling_layer=False" if bare and family.has_pooler else ""
    code = LOADER.format(kind=type(model).__name__, options=options)
    if empty := _empty_parts(model):
        code += EMPTY + "\n".join(empty) + "\n"
    return code + "model.tie_weights()\nmodel.load_state_dict(weights, strict=False)\n"


def _empty_parts(model: PreTrainedModel) -> list[str]:
    """Return lines that replace what has no heads or no columns."""
    family = get_family(model)
    assert family.outputs and family.ffn
    prefix, lines = family.layers.removeprefix("" if family.prefix(model) else f"{family.encoder}."), []
    mixing = family.projections[0].rpartition(".")[0]
    for number, shape in enumerate(layer_shapes(model.config)):
        layer = f"{prefix}.{number}"
        gone = [name for name, size in zip(family.outputs, (shape.heads, shape.feed_forward), strict=True) if not size]
        if not shape.heads:
            lines.append(f'model.set_submodule("{layer}.{mixing}", NoHeads())')
        if not shape.feed_forward:
            lines.append(f'model.set_submodule("{layer}.{family.ffn[0]}", torch.nn.Identity())')
        for name in gone:
            path = f"{layer}.{name}"
            parent, _, last = path.rpartition(".")
            lines.append(f'model.get_submodule("{parent}").{last} = NoInputs(weights["{path}.bias"])')
    return lines
