"""The doctor: which of the known faults does an attention have?

from headway.check import diagnose
report = diagnose(my_module, kind="self", causal=True)
"""

from headway.check.doctor import diagnose
from headway.check.findings import Finding, Report
from headway.check.properties import CHECKS
from headway.check.subjects import FEATURES

__all__ = ["CHECKS", "FEATURES", "Finding", "Report", "diagnose"]
