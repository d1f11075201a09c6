"""One grader per exercise: a function of an `Answer` that raises `Wrong` for a wrong one."""
