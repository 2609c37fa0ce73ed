"""Copies a bundle onto sticks, and proves that they hold it."""
