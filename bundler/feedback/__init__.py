"""What proofs measured, and what later plans make of it. Pure."""
