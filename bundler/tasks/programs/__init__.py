"""Programs that a model wrote, run against their tests where they can do no harm."""
