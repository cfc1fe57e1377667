"""Fuzzing: damaged files for every reader. Run ``python -m tests.fuzz --seconds 600``."""
