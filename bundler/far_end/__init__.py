"""What runs from the stick itself, where no bundler is installed: `./start check` and `repair`.

It is the code that runs at home, carried along: `carried` lists which modules, `commands` is the
door, `sampling` says what a quick check reads, `telling` says in plain words what was found.
"""
