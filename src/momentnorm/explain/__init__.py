"""Normalization, explained: an application of the library."""
