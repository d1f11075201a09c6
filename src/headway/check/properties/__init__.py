"""The properties that attention must have; `CHECKS` is the table of them all."""

from types import MappingProxyType

from headway.check.properties import formula, masking, numerics, order
from headway.check.properties.check import Check

# In the order of a report: a fault of the formula explains most of what comes after it.
CHECKS: MappingProxyType[str, Check] = MappingProxyType(
    {
        "runs": numerics.CHECKS["runs"],
        **formula.CHECKS,
        **order.CHECKS,
        **masking.CHECKS,
        **{name: check for name, check in numerics.CHECKS.items() if name != "runs"},
    }
)
