"""The same model in another shape: channels scaled or rotated so that rounding hurts less.

`wiring` says who reads and who writes the residual stream, and refuses what it does not know;
`rotating` and `scaling` turn that into changes of single tensors (`changes`), `rewriting` writes the
new file, `checking` holds its logits to the old one's, and `deciding` keeps it only where it helps.
`low_rank` is the other way to mend: it leaves the file alone and corrects it with an adapter.
"""
