"""What `lorauter doctor` finds, and that it says what to do."""

from __future__ import annotations

import pytest

from lorauter_suite import doctor
from lorauter_suite.embedded.process import PartFailed


def refuse(*_):
    raise PartFailed("not among the wheels")


def test_every_check_says_something_when_examined(tmp_path):
    checks = doctor.examine(tmp_path / "not" / "yet" / "there")
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.detail for check in checks)
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("check", "finder", "setting"),
    [
        (doctor.check_postgres, "programs", "DATABASE_URL"),
        (doctor.check_valkey, "valkey_binary", "REDIS_URL"),
    ],
)
def test_an_embedded_part_is_fine_when_its_wheel_is_missing_but_a_server_is_given(
    monkeypatch, check, finder, setting
):
    monkeypatch.setattr(doctor, finder, refuse)
    monkeypatch.delenv(setting, raising=False)
    assert not check().ok
    monkeypatch.setenv(setting, "given://server")
    assert check().ok


@pytest.mark.parametrize("setting", ["DATABASE_URL", "REDIS_URL"])
def test_the_setting_is_named_when_a_wheel_is_missing(monkeypatch, setting):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delenv(setting, raising=False)
    check = doctor.check_postgres if setting == "DATABASE_URL" else doctor.check_valkey
    assert setting in check().detail


def test_qdrant_url_is_named_when_the_client_is_missing():
    check = doctor.check_package("no-such-distribution", "index", "set QDRANT_URL")
    assert not check.ok
    assert "QDRANT_URL" in check.detail


def test_the_data_directory_is_not_fine_when_a_file_is_in_its_place(tmp_path):
    (tmp_path / "file").write_text("")
    check = doctor.check_data_dir(tmp_path / "file")
    assert not check.ok
    assert "LORAUTER_DATA" in check.detail


def test_disk_is_not_fine_when_there_is_too_little(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "NEEDED_DISK_BYTES", 2**60)
    assert not doctor.check_disk(tmp_path).ok


def test_memory_is_not_fine_when_there_is_too_little(monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED_MEMORY_BYTES", 2**60)
    assert not doctor.check_memory().ok
