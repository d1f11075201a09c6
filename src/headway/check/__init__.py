"""Check an attention implementation for known faults.

from headway.check import diagnose
diagnosis = diagnose(my_module, kind="self", causal=True)
"""

from headway.check.declaration import FEATURES, Declaration
from headway.check.doctor import diagnose
from headway.check.findings import Diagnosis, Finding
from headway.check.properties import CHECKS

__all__ = ["CHECKS", "FEATURES", "Declaration", "Diagnosis", "Finding", "diagnose"]
