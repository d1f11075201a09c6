"""The graders: one module per group of exercises; each grader raises `Wrong` or returns."""
