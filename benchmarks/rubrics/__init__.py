"""Rubric optimisation against every baseline, over fields and target models (`python -m benchmarks.rubrics`)."""
