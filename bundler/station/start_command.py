"""What a person types at the far end to run a bundle's own programs, on the system this runs on."""

import sys

START_COMMAND = r".\start.cmd" if sys.platform == "win32" else "./start"
"""With the folder before it: PowerShell runs nothing of the folder one is in by its name alone, and
`start` is a command of cmd's own."""
