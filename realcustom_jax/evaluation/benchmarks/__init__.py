"""Benchmarks of subject-driven pictures, read from the user's own copy of their files."""

from realcustom_jax.evaluation.benchmarks.registry import BENCHMARKS, read_benchmark

__all__ = ["BENCHMARKS", "read_benchmark"]
