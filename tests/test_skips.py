"""A skipped test is an error in CI, unless there is no browser."""

import pytest
from skips import NO_BROWSER, without_skips


def report(reason: str, outcome: str = "skipped") -> pytest.TestReport:
    return pytest.TestReport(
        nodeid="a.py::test", location=("a.py", 0, "test"), keywords={}, outcome=outcome,
        longrepr=("a.py", 1, f"Skipped: {reason}"), when="call",
    )  # fmt: skip


def test_a_skip_is_a_failure_that_keeps_its_reason() -> None:
    failed = without_skips(report("OpenVINO is not installed"))
    assert failed.failed and "OpenVINO is not installed" in str(failed.longrepr)


def test_skip_for_a_missing_browser_is_not_a_failure() -> None:
    assert without_skips(report(f"{NO_BROWSER}: not found")).skipped


def test_other_outcomes_are_unchanged() -> None:
    assert without_skips(report("", outcome="passed")).passed
