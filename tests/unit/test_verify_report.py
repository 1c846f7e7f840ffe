"""The report of `make verify`."""

from __future__ import annotations

from tests.verify import PROPERTIES, Result, report_text


def test_it_says_first_what_failed_then_each_files_tests_with_their_figures() -> None:
    results = [
        Result(PROPERTIES, passed=True, duration_s=3600, ended="now"),
        Result("tests/a.py::test_one[x]", passed=True, duration_s=90, ended="now"),
        Result("tests/a.py::test_two", passed=False, duration_s=30, ended="now"),
        Result("tests/b.py::test_one", True, 60, "now", {"lost": "0", "took": "3 s"}),
    ]
    text = report_text(results, "Revision abc", "2026-11-26")
    assert "3 of 4 tests passed, in 1 h 3 min; these failed:\n\n- `tests/a.py::test_two`\n" in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [f"## {PROPERTIES}", "## tests/a.py", "## tests/b.py"]
    assert "| `test_two` | **failed** | 0.5 |  |" in text
    assert "| `test_one` | passed | 1.0 | lost 0; took 3 s |" in text
    assert "tests passed, in 1 h 1 min.\n" in report_text([results[0], results[3]], "", "")
