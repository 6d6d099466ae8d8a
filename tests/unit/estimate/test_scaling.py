"""Where more devices stop paying follows from compute that is divided and bytes that are not."""

import pytest

from ds_distill.estimate.scaling import PAYS, Exchange, scale, scales, verdict

STUDENT = 66_985_530


def test_bytes_by_stage_and_dtype():
    """At 16 bit with sums in fp32: 268 MB reduced twice and 134 MB gathered, less what a device has itself."""
    sent = {stage: Exchange(STUDENT, stage, 4, 2).bytes_per_step(64, 8) * 64 / 63 for stage in range(4)}
    assert sent[0] == pytest.approx(8 * STUDENT)
    assert sent[1] == pytest.approx(10 * STUDENT)
    assert sent[2] == pytest.approx((8 * 4 + 2) * STUDENT), "gradients in every micro-batch"
    assert sent[3] == pytest.approx(8 * (4 + 2 * 2) * STUDENT), "and weights twice in every micro-batch"
    assert Exchange(STUDENT, 1, 2, 2).bytes_per_step(64, 1) == pytest.approx(6 * STUDENT * 63 / 64)
    assert all(Exchange(STUDENT, stage, 4, 2).bytes_per_step(1, 8) == 0 for stage in range(4))


def test_devices_pay_until_the_network_takes_half():
    exchange = Exchange(STUDENT, 1, 4, 2)

    def one(devices):
        return scale(devices, 4096, 512, 32, lambda sequences: 568_000.0, exchange, 40.0)

    rows = scales(4096, one)
    assert rows[0].communication_ms == 0 and rows[0].share == pytest.approx(1)
    by_devices = {row.devices: row for row in rows}
    assert by_devices[64].compute_ms == pytest.approx(4096 * 512 / 64 / 568_000 * 1e3)
    assert by_devices[64].communication_ms == pytest.approx(16.5, abs=0.1)
    assert by_devices[64].share == pytest.approx(0.78, abs=0.01)
    assert [row.share for row in rows] == sorted((row.share for row in rows), reverse=True)
    assert [row.share >= PAYS for row in rows] == [True] * (len(rows) - 1) + [False]
    expected = f"Adding devices is worthwhile up to {rows[-2].devices}: with {rows[-1].devices}, each would run at"
    assert verdict(rows, 4096).startswith(expected)
    faster = scales(4096, lambda n: scale(n, 4096, 512, 32, lambda sequences: 568_000.0, exchange, 400.0))
    assert len(faster) > len(rows), "a faster network serves more devices"


def test_no_more_devices_than_sequences():
    def one(devices):
        return scale(devices, 6, 128, 8, lambda sequences: 1e3, Exchange(1000, 0, 4, 4), 40.0)

    rows = scales(6, one)
    assert [row.devices for row in rows] == [1, 2, 4] and one(4).compute_ms == pytest.approx(2 * 128)
    assert verdict(rows, 6) == "Adding devices is worthwhile up to 4; a step has only 6 sequences."
