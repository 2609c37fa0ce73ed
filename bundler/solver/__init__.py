"""Chooses one option for each model under limits that all share, exactly. Pure."""
