"""From recipe, lock, targets and offers to a plan. Pure."""
