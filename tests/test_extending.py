"""docs/extending.md: the files that it names exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_is_there():
    named = {name for name in re.findall(r"`([\w/]+\.py)`", PAGE) if "NAME" not in name}
    assert len(named) > 12
    for name in named:
        places = (ROOT / name, ROOT / "src/headway" / name, ROOT / "src/headway/attention" / name)
        assert any(place.is_file() for place in places), name
