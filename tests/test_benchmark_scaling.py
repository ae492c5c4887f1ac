"""benchmarks/scaling.py: what the programs communicate, exactly, and the model of it."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bnn_jax import runs

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
scaling = importlib.util.module_from_spec(SPEC)
sys.modules["scaling"] = scaling
SPEC.loader.exec_module(scaling)

P = 64 * 8 + 8 + 8 * 10 + 10  # weights of the perceptron of --quick


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("scaling") / "scaling.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--quick", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    return runs.read_json(out)


def test_one_device_communicates_nothing(results):
    alone = [row for row in results["programs"] if row["devices"] == 1]
    assert len(alone) == 3
    assert not [row for row in alone if row["collectives"]]


@pytest.mark.parametrize(
    ("program", "reduced", "a_leapfrog", "size"),
    [
        ("VI", 1, None, 4 * (2 * P + 1)),  # gradients of means and widths, the loss
        ("VI, 4 samples", 1, None, 4 * (8 * P + 1)),
        ("HMC, 2 chains, 2 x n/2", 2, 1, 4 * (P + 1)),  # within the trajectory, and before it
    ],
)
def test_gradients_are_reduced_once_and_nothing_else_is(program, reduced, a_leapfrog, size, results):
    (row,) = [row for row in results["programs"] if (row["program"], row["devices"]) == (program, 4)]
    assert (row["gradient_all_reduces"], row["a_leapfrog"], row["scalar_all_reduces"]) == (
        reduced,
        a_leapfrog,
        0,
    )
    assert set(row["others"].values()) == {0}
    assert row["bytes"] == row["model"] == size
    assert row["equal"]
    assert row["difference"] < 1e-5


def test_tables(results):
    rows = scaling.table(results).splitlines()
    assert len(rows) == 2 + 6 + 2
    assert len({row.count("|") for row in rows[:-2]}) == 1
    rows = scaling.cost_table(results).splitlines()
    assert len(rows) == 2 + len(scaling.CASES)
    assert len({row.count("|") for row in rows}) == 1


HLO = """
  %all-reduce.1 = (f32[6]{0}, f32[5,5,1,6]{3,2,1,0}, /*index=5*/f32[]) all-reduce(%a, %b, %c), channel_id=1, \
metadata={op_name="jit(run)/while/body/dot"}
  %all-gather = bf16[8,4]{1,0} all-gather(%d), dimensions={0}
  %start = f32[3]{0} all-reduce-start(%e), metadata={op_name="jit(f)/while/body/g/while/body/h"}
  %done = f32[3]{0} all-reduce-done(%start)
  %add = f32[3]{0} add(%all-reduce.1, %done)
""".replace("\\\n", "")


def test_collectives_are_read_from_the_program():
    assert scaling.collectives(HLO) == [
        {"kind": "all-reduce", "tensors": 2, "scalars": 1, "bytes": 4 * (6 + 150 + 1), "loops": 1},
        {"kind": "all-gather", "tensors": 1, "scalars": 0, "bytes": 64, "loops": 0},
        {"kind": "all-reduce", "tensors": 1, "scalars": 0, "bytes": 12, "loops": 2},
    ]


def test_cost():
    vi = scaling.cost("vi", 1000, (1, 8), 128, 4)
    assert (vi["gradients"], vi["state"], vi["all_reduces"], vi["bytes"]) == (64, 24_000, 1, 32_004)
    assert vi["traffic"] == 32_004 * 2 * 7 / 8
    hmc = scaling.cost("hmc", 1000, (4, 2), 600, 3, leapfrogs=9)
    assert (hmc["gradients"], hmc["all_reduces"], hmc["bytes"]) == (300 * 3 * 10, 10, 3 * 4_004)
    assert (hmc["state"], hmc["draw"]) == (12_000, 4 * 3 * 4000)
    alone = scaling.cost("hmc", 1000, (64, 1), 600, leapfrogs=9)
    assert (alone["all_reduces"], alone["bytes"], alone["traffic"]) == (0, 0, 0)
