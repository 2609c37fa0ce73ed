"""What this machine can build, verify and serve, and what to do where it cannot.

::

    software   Python, libraries (and whether they load), engines and what they run on
    storage    the disks of store and output
    needs      a recipe's plan held against this machine
    serving    a bundle held against this machine

Each gives findings; `findings` says what those are and which exit code they come to. Nothing is
changed, nothing is fetched, and no connection is opened unless that is what is asked.
"""
