"""The course: a guide of chapters with live figures, and exercises whose grader names mistakes."""
