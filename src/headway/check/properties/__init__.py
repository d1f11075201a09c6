"""The properties that attention must have; `CHECKS` is the table of them all."""

from types import MappingProxyType

from headway.check.properties import formula, masking, numerics, order
from headway.check.properties.check import Check

# In the order of a report: what is first explains most of what comes after it. (A name that comes
# again keeps its first place.)
CHECKS: MappingProxyType[str, Check] = MappingProxyType(
    {
        "runs": numerics.CHECKS["runs"],
        "repeatable": numerics.CHECKS["repeatable"],
        **formula.CHECKS,
        **order.CHECKS,
        **masking.CHECKS,
        **numerics.CHECKS,
    }
)
