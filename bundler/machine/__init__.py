"""This machine, as it is: what it has, what of it is free, and how fast it is.

::

    processor  memory  graphics  nvml  bandwidth  disk     each measures one thing
                     └──────── look ────────┘              all of them → one `Machine`
                            as_target                      `Machine` → a `[target]` table

Every figure says how it was come by. What cannot be measured is left out and said, never guessed.
"""
