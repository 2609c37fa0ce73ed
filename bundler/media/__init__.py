"""What touches the stick: signatures, and who is believed."""
