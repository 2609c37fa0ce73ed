"""Questions with known answers, put to a model and to the unquantized one."""
