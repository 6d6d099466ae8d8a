"""Test that rates are those of the committed reports, and how they extrapolate."""

import json

import pytest

from ds_distill.estimate.hardware import (
    CPU_LONG,
    CPU_SHORT,
    DEVICES,
    H100_LARGE,
    H100_SMALL,
    MEASURED_WORK,
    VOCABULARY_SECONDS,
    estimate_rate,
    find_device,
    is_measured,
)
from ds_distill.utils.errors import UserError
from tests.start import ROOT


def test_measured_rates_are_those_of_the_committed_reports():
    parts = json.loads((ROOT / H100_SMALL.report / "gpu_suite.json").read_text())["parts"]
    steps = {H100_SMALL: parts["step_128"], H100_LARGE: parts["large"]}
    for measurement in (CPU_SHORT, CPU_LONG):
        steps[measurement] = json.loads((ROOT / measurement.report / "training.json").read_text())
    for measurement, step in steps.items():
        assert measurement[1:6] == (
            step["sequences"],
            step["length"],
            step["engine"],
            step.get("gemms"),
            step["date"],
        )
        if measurement.length == 128:
            assert step["mflops_per_token"] == MEASURED_WORK.flops / 1e6
        assert (step["size"], step["objective"], step["dropout"], step["ranks"]) == ("base", "all", 0.1, 1)
    profile = (ROOT / H100_SMALL.report / "gpu_suite.md").read_text()
    row = next(line for line in profile.splitlines() if line.split()[:1] == ["_FusedVocabularyLoss"])
    assert f"{VOCABULARY_SECONDS * 1e3:.3f}ms" in row


def test_the_model_returns_what_was_measured():
    for measured in (H100_SMALL, H100_LARGE):
        rate = estimate_rate(DEVICES["h100"], MEASURED_WORK, measured.tokens)
        assert rate.tokens_per_second == pytest.approx(measured.tokens_per_second)


def test_other_devices_are_slower_where_their_data_sheet_is():
    def rate(name, tokens=65_536, work=MEASURED_WORK):
        return estimate_rate(DEVICES[name], work, tokens).tokens_per_second

    assert rate("h200") > rate("h100") > rate("a100") > rate("a100-40gb") > rate("a10g") > rate("t4")
    # A GPU with a third of the peak and 60 % of the bandwidth lies between these two.
    assert 312 / 989.4 < rate("a100", 2**30) / rate("h100", 2**30) < 2039 / 3350
    assert rate("h100", 1024) < rate("h100", 2048)
    assert rate("h100", work=MEASURED_WORK._replace(flops=2 * MEASURED_WORK.flops)) < rate("h100")
    assert [name for name in DEVICES if is_measured(name)] == ["h100"]


def test_an_unknown_gpu_is_answered_with_the_known_ones():
    assert find_device("H100") is DEVICES["h100"]
    with pytest.raises(
        UserError, match=r"--gpu h10: not a known GPU; give one of h100 \(measured\), .*did you mean h100"
    ):
        find_device("h10")
