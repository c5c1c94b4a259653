"""Evaluation: the published data sets, scored as published and cleanly; see docs/evaluation.md."""
