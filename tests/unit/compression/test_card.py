"""Test that the card of a pruned model tells what was taken out of it, and nothing else."""

import pytest

from ds_distill.compression.card import pruned_card
from ds_distill.config.pruning import Pruning
from ds_distill.reporting.provenance import Provenance

FIGURES = {"layers": [{"heads": 2, "feed_forward": 8}], "parameters": 1e6, "parameters_before": 2e6, "speedup": 2.125}


@pytest.mark.parametrize(
    ("pruning", "told", "untold"),
    [
        (Pruning(2), ["Heads and feed-forward columns", "is 2.12 times as fast", "corrected"], ["width", "operations"]),
        (Pruning(2, "flops"), ["needs 2.12 times fewer operations", "1 x 128 tokens"], ["as fast"]),
        (Pruning(2, uniform=True), ["Feed-forward columns, as many in each layer,", "corrected"], ["eads"]),
        (Pruning(1, hidden_size=16), ["width was cut to 16"], ["corrected", "as fast", "Heads and"]),
        (Pruning(2, hidden_size=16), ["width was cut to 16", "Heads and feed-forward columns", "corrected"], []),
    ],
)
def test_a_card_tells_how_it_was_cut(pruning, told, untold):
    text = pruned_card(FIGURES, pruning, Provenance(), head=True)
    description = next(line for line in text.splitlines() if "Nothing was trained" in line)
    assert all(words in description for words in told) and not any(words in description for words in untold)


def test_a_card_tells_what_was_measured():
    text = pruned_card(FIGURES | {"measured_speedup": 1.5}, Pruning(2), Provenance(), head=True)
    assert "is 1.5 times as fast" in text and "How good it is was not measured." in text
    losses = {"loss_saliency": 3.0, "loss_before": 2.5}
    assert "Nothing but the loss above" in pruned_card(FIGURES | losses, Pruning(2), Provenance(), head=True)
