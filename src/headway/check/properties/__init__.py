"""The properties that attention must have; `CHECKS` is the table of all checks."""

from types import MappingProxyType

from headway.check.properties import formula, masking, numerics, order
from headway.check.properties.check import Check

# The order of a diagnosis: early failures explain later ones.
CHECKS: MappingProxyType[str, Check] = MappingProxyType(
    {
        check.name: check
        for check in (
            numerics.runs,
            numerics.repeatable,
            *formula.CHECKS,
            *order.CHECKS,
            *masking.CHECKS,
            *numerics.CHECKS,
        )
    }
)
