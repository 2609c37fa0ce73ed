"""From one version of a bundle to the next by a second stick that carries only what changed."""
