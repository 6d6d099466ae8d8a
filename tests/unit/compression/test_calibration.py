"""Hold the moments of calibration against those of all inputs at once, in float64."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForMaskedLM

from ds_distill.compression.calibration import collect_moments
from ds_distill.data.batch import Batch
from ds_distill.models.families import get_family
from ds_distill.models.layer_shapes import LayerShape, reshape_layers, set_layer_shapes
from tests.tiny import save_encoder


def make_batch(rows, length, padded=False):
    generator = torch.Generator().manual_seed(rows)
    ids = torch.randint(5, 60, (rows, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([[length], *[[length - 3]] * (rows - 1)])) if padded else None
    return Batch(ids, torch.full_like(ids, -100), mask)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_moments_are_those_of_all_real_tokens(tmp_path, family):
    model = AutoModelForMaskedLM.from_pretrained(save_encoder(family, tmp_path)).eval()
    set_layer_shapes(model.config, [LayerShape(1, 24), LayerShape(0, 64)])
    reshape_layers(model)
    batches = [make_batch(2, 12), make_batch(3, 9, padded=True)]
    table, layer = get_family(model), get_family(model).get_layers(model)[1]
    seen, sums = [], []
    output, norm = (layer.get_submodule(name) for name in (table.outputs[1], table.output_norms[1]))
    output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].double()))
    norm.register_forward_pre_hook(lambda module, inputs: sums.append(inputs[0].double()))
    found = collect_moments(model, batches)
    assert set(found) == {(0, "heads"), (0, "feed_forward"), (1, "feed_forward")}, "nothing is left of the others"
    real = [torch.ones(2, 12, dtype=torch.bool), batches[1].token_mask]
    values, read = (torch.cat([part[mask] for part, mask in zip(parts, real, strict=True)]) for parts in (seen, sums))
    moments = found[1, "feed_forward"]
    assert moments.count == len(values) == 24 + 9 + 6 + 6
    torch.testing.assert_close(moments.mean, values.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.covariance, values.T.cov(correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.gain, (1 / read.var(-1, correction=0)).mean(), rtol=1e-5, atol=0)
    assert not any(
        isinstance(part, nn.Linear) and part._forward_pre_hooks
        for part in get_family(model).get_layers(model)[0].modules()
    )
