"""Compare two models step by step: `headway.diff` names the first step that differs, and why."""
