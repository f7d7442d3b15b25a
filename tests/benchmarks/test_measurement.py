"""Tests of measurements: ratios, slopes, turns and peak memory; nothing is timed."""

import numpy as np
import pytest
from benchmark_rows import row

from benchmarks import measurement
from benchmarks.measurement import Cost


def test_ratio_is_the_speed_up_of_each_round() -> None:
    # The machine is slower in the third round, for both: no ratio changes.
    found = row([1.0, 2.0, 10.0], [4.0, 6.0, 50.0]).record()
    assert [found[k] for k in ("ratio", "ratio_lowest", "ratio_highest")] == [4, 3, 5]
    assert found["reached"]
    assert not row([1.0], [2.9]).record()["reached"]


def test_slope_is_the_exponent_of_the_size() -> None:
    sizes = [500, 1000, 2000, 4000]
    assert Cost("t", "points", sizes, [3e-6 * n**2 for n in sizes]).slope == pytest.approx(2)
    assert Cost("t", "points", sizes, [7.0] * 4).slope == pytest.approx(0)


def test_implementations_alternate_and_the_warm_up_is_not_counted() -> None:
    called: list[str] = []

    def ours() -> None:
        called.append("a")

    def theirs() -> float:
        called.append("b")
        return 100.0 + called.count("b")

    timings = measurement.in_turn({"ours": ours, "theirs": theirs}, 2)
    assert "".join(called) == "ba" + "ab" + "ba"
    # Returned seconds are used unchanged; the first ones are those of the warm-up.
    assert timings["theirs"].seconds == [102.0, 103.0]
    assert len(timings["ours"].seconds) == 2


def test_time_by_size_is_the_fastest_call_after_a_warm_up() -> None:
    called: list[int] = []

    def prepare(count: int):
        def way() -> float:
            called.append(count)
            return count / 10 + (5.0 if called.count(count) % 2 else 0.0)

        return way

    cost = measurement.by_size(prepare, "job", "images", [10, 20], 2)
    assert called == [10, 10, 10, 20, 20]
    assert cost.seconds == [1.0, 2.0] and cost.sizes == [10, 20]


def _peak_with(megabytes: int) -> float:
    held = np.ones(megabytes * 2**20, np.uint8)
    peak = measurement.memory_of_process("VmHWM")
    assert held.all()
    return peak


def test_peak_memory_of_a_new_process_excludes_that_of_its_parent() -> None:
    if not measurement.memory_of_process("VmHWM"):
        pytest.skip("this system does not report the peak memory of a process")
    # It must not include what this process holds, or once held.
    held = _peak_with(600)
    with_little, with_much = (measurement.in_new_process(_peak_with, n) for n in (1, 301))
    assert with_much - with_little == pytest.approx(300, abs=20)
    assert with_much < held
