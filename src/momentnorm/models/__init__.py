"""Models: tools for a model in memory, which swap, verify, load or check its layers."""
