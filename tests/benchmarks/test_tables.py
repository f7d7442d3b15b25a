"""Tests of the tables of a benchmark."""

from benchmark_rows import row

from benchmarks import measurement, tables
from benchmarks.measurement import Cost, Memory, Skipped


def test_table_marks_missed_targets_and_differing_results() -> None:
    about = measurement.machine()
    rows = [
        row([2.0], [8.0]),
        row([2.0], [3.0], check="equal to 1e-3"),
        row([2.0], [9.0], same=False, check="they differ by 7"),
        Skipped("maps", "third", "not installed"),
    ]
    text = tables.table(rows, about)
    first, second, third = [x for x in text.splitlines() if x.startswith("| maps")]
    assert "| 5 images/s | 1.25 images/s | 4.00 (4.00 to 4.00) | 3 | equal | 1, 2 |" in first
    assert "1.50" in second and "missed" in second and "missed" not in first
    assert "NOT THE SAME: they differ by 7" in third and "NOT" not in second
    assert "left out: maps, third: not installed" in text
    assert f"{about['cores']} cores" in text.splitlines()[0]


def test_memory_and_costs_have_separate_tables() -> None:
    found = [
        Memory("training", "ours", 2345.6, "MB", 3000),
        Memory("training", "Keras", 4000.0, "MB"),
        Memory("input", "ours", 9.0, "kB per image", 4),
        Cost("t-SNE", "points", [200, 400], [1.0, 4.0]),
    ]
    text = tables.table(found, measurement.machine())
    assert "| training | ours | 2,346 MB | at most 3,000 |" in text
    assert "| training | Keras | 4,000 MB |  |" in text
    assert "| input | ours | 9 kB per image | at most 4, missed |" in text
    assert "| seconds, by size | 200 | 400 | slope |" in text
    assert "| t-SNE (points) | 1 | 4 | 2.00 |" in text
    assert "times as fast" not in text
