"""What runs inside the sandbox. The standard library only: nothing else is to be seen there."""
