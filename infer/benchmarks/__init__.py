"""Measurements of a model, one file each; `python -m infer evaluate NAME`."""
