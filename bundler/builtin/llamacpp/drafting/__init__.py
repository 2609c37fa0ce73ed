"""A small model guesses, a large one checks: what that takes, and how often the guesses are right."""
