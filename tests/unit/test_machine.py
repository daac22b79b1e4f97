"""Reports say what they were measured on."""

from __future__ import annotations

from lorauter_suite.machine import PACKAGES, machine, versions


def test_report_names_cores_processor_and_versions() -> None:
    found = machine()
    assert isinstance(found["cores"], int)
    assert found["cores"] >= 1
    assert found["model"]
    assert versions().keys() == {"python", *PACKAGES}
