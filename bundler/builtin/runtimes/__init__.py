"""Runtimes: what serves a model at the far end, and the portable Python under it."""
