"""The terms between what lies inside the models have one gradient at every ZeRO stage, with any accumulation and ranks.

It is that of their plain form on the whole batch in one process. Two of them own a projection between widths.
"""

import json

import pytest

from tests.start import run_ranks

STAGES = [{"deepspeed": f"zero{stage}", "accumulations": [2]} for stage in range(4)]
STAGES += [{"deepspeed": "zero3", "accumulations": [1], "alone": True, "checkpointing": True}]
STAGES += [{"deepspeed": "zero3", "accumulations": [2], "alone": True, "family": "modernbert"}]
LONG = [{"deepspeed": f"zero{stage}", "accumulations": [1, 4], "checkpointing": True} for stage in range(4)]
LONG += [{"deepspeed": f"zero{stage}", "accumulations": [2], "alone": True} for stage in range(4)]
COMPILED = [
    {"deepspeed": "zero1", "accumulations": [2], "compiled": True},
    {"deepspeed": "zero1", "accumulations": [2], "compiled": True, "alone": True},
    {"deepspeed": "zero1", "accumulations": [2], "compiled": True, "checkpointing": True},
]


def check_cases(world: int, cases: list[dict]) -> None:
    """Run all cases in one launch, because starting the ranks takes longer than the steps."""
    output = run_ranks(world, "tests.distributed.match_worker", *map(json.dumps, cases))
    rows = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [(row["what"], row["accumulation"]) for row in rows] == [
        (case, n) for case in cases for n in case["accumulations"]
    ]
    for row in rows:
        assert row["loss"] <= 1e-5 and row["gradient"] <= 1e-4, row
        assert row["projections"] == (0 if row["what"].get("alone") else 2) and not row["others"], row


@pytest.mark.promise("ZeRO 0 to 3, ranks and accumulation do not change the gradient of terms that own a projection")
@pytest.mark.parametrize(
    ("world", "cases"),
    [
        (2, STAGES),
        pytest.param(1, LONG, marks=pytest.mark.long),
        pytest.param(2, LONG, marks=pytest.mark.long),
        pytest.param(2, COMPILED, marks=pytest.mark.long),
    ],
    ids=["stages", "long", "long, two ranks", "compiled"],
)
def test_the_gradient_is_that_of_the_plain_form(world, cases):
    check_cases(world, cases)
