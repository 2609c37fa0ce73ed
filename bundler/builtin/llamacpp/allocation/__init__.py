"""Bits where they matter: which type each tensor gets, so that a byte budget does the least damage.

`matrices` and `rounding` read weights and round them as llama.cpp would; `errors` measures what each
type does to each tensor, `poking` and `sensitivity` how much the model minds; `damages` multiplies
the two, `solving` spends the budget, `record` says what was decided and why, `mixing` makes the file.
"""
