"""Long answers of a model beside those of the unquantized one: loops, collapse, endings.

Perplexity and a short greedy sample pass models that fall into loops after a page. So both models
write the same long answers, drawn with the same random numbers, and the verdict is on what the
quantized one does more often: models that loop by nature are not blamed on their quantization.
"""
