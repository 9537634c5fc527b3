"""Reports, as a person reads them."""

from daskqueue_storage.errors import DamagedLog
from daskqueue_storage.report import Damage, RecoveryReport


def test_reports_are_for_people_and_programs() -> None:
    """Everything that was found in one line."""
    assert str(RecoveryReport()) == "whole"
    report = RecoveryReport(
        damaged=(Damage("/p", 64, 128, 2),), missing_files=("/q",), lost_records=3, tail_bytes=5, clean=False
    )
    assert str(report) == (
        "/p from byte 64 to 128 (2 records lost); /q is missing; 3 records lost in all; a torn tail of 5 bytes"
    )
    assert not report.whole
    error = DamagedLog("/log", report)
    assert error.report is report
