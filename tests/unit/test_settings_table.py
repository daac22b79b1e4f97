"""docs/settings.md says what the settings classes say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def page() -> str:
    """What the script would write."""
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "scripts" / "settings_table.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return str(script.page())


def test_settings_page_is_current(page: str) -> None:
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page, "run `make settings`"


def test_every_setting_says_what_it_means(page: str) -> None:
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 30
    assert all(line.split(" | ")[2].strip(" |") for line in rows)
