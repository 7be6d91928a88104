"""What holds for all tests: one torch thread, and no silent skips where it counts.

With CI=true a skipped test is a failure that shows the reason of the skip: a suite that passes because half of it did
not run proves nothing. Tests that need something (PostgreSQL, a GPU) find it, or are parametrised over what is there.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

# before anybody imports torch: small tensors are slower on many threads, and sums depend on how they are split
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def skips_fail() -> bool:
    return os.environ.get("CI", "").lower() in ("1", "true")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skipped test, in its set-up or in its body; an expected failure (xfail) stays what it is."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and skips_fail():
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A whole module that skips itself while it is collected."""
    report = yield
    if report.skipped and skips_fail():
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"with CI=true a skip is a failure. {reason}"
