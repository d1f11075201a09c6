"""Tests that the files that docs/extending.md names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_exists():
    names = {name for name in re.findall(r"`([\w/]+\.py)`", PAGE) if "NAME" not in name}
    assert len(names) > 12
    for name in names:
        paths = (ROOT / name, ROOT / "src/headway" / name, ROOT / "src/headway/attention" / name)
        assert any(path.is_file() for path in paths), name
