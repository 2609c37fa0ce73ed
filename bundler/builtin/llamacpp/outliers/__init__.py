"""What a model's activations look like: outlier channels, massive activations, attention sinks.

`collecting` sums up inside a running graph, `measuring` is the job that runs it, `gated` reads from
configuration and tensor names whether norms have gates, `meaning` says it in words, and `looking`
puts one inspection together, before and after mitigation.
"""
