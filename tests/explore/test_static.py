"""The scripts of the page: what they import, and that names exist once."""

import re
from graphlib import TopologicalSorter
from importlib import resources

from headway.explore.edits import EDITS

SCRIPTS = {
    file.name: file.read_text(encoding="utf-8")
    for file in resources.files("headway.explore").joinpath("static").iterdir()
    if file.name.endswith(".js")
}


def test_no_script_imports_itself_through_others():
    imports = {
        name: re.findall(r'^import .* from "\./([^"]+)";$', text, re.MULTILINE)
        for name, text in SCRIPTS.items()
    }
    assert "attention.js" in imports["trace.js"]
    assert {*TopologicalSorter(imports).static_order()} == {*SCRIPTS}  # raises for a cycle


# The three checkboxes, and what follows from a mask that is switched off. ("off" is also a word of
# HTML.) All other names, and all labels, come from Python.
NAMED = {
    "off": {"panel.js", "main.js"},
    "no scale": {"panel.js"},
    "no mask": {"panel.js", "attention.js"},
}


def test_names_of_edits_come_from_the_manifest():
    for name, kind in EDITS.items():
        used = {file for file, text in SCRIPTS.items() if f'"{name}"' in text or kind.label in text}
        assert used <= NAMED.get(name, set()), name
