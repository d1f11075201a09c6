"""The checks as tests of a test suite, one test per check.

from headway.check.pytest import checks
test_my_attention = checks(MyAttention(64, heads=4), kind="self", causal=True)
"""

from collections.abc import Callable
from typing import Any

import pytest

from headway.check.doctor import diagnose
from headway.check.properties import CHECKS


def checks(attention: Any, **declared: Any) -> Callable[[str], None]:
    """Return a test function with one case per check; declared: as in `diagnose`.

    A check that does not apply is skipped, with its reason.
    """

    @pytest.mark.parametrize("check", CHECKS)
    def test(check: str) -> None:
        (finding,) = diagnose(attention, only=[check], **declared).findings
        if finding.verdict == "fail":
            look = "".join(f"\nlook at  {line}" for line in finding.look)
            pytest.fail(
                f"{finding.diagnosis}\nmeasured {finding.measured}\nexpected {finding.expected}"
                f"\nfix      {finding.fix}{look}",
                pytrace=False,
            )
        if finding.verdict != "pass":
            pytest.skip(f"{finding.verdict}: {finding.diagnosis}")

    return test
