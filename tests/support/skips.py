"""The rule by which CI treats skipped tests as errors."""

from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

# The one reason to skip that CI accepts: a system package that may not be installable there.
NO_BROWSER = "no Chromium that starts"


def without_skips(report: Report) -> Report:
    """Return the report; a skip for any reason but a missing browser becomes a failure."""
    reason = str(report.longrepr)
    if report.skipped and not hasattr(report, "wasxfail") and NO_BROWSER not in reason:
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where all that tests need is installed: {reason}"
    return report
