"""Says what is in a Parquet file, as JSON lines. Run as a program by `parquet`, with limits; needs
nothing of ours.
"""

from __future__ import annotations

import json
import sys
from typing import Any

MEMORY_BYTES = 1 << 30
"""Address space; DuckDB itself takes 200 MB of it."""
_UNREADABLE = 3
_NO_MEMORY = 4
_ROWS = 1000


def _limit_memory() -> None:
    if sys.platform == "win32":
        return  # there is no such limit; DuckDB's own holds
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def connected(path: str) -> Any:
    """Return a connection to DuckDB which reads that file and nothing else."""
    import duckdb

    table = duckdb.connect(
        config={
            "threads": 1, "memory_limit": "400MB", "autoinstall_known_extensions": False,
            "autoload_known_extensions": False, "temp_directory": "",
        }
    )  # fmt: skip
    for setting in (
        f"allowed_paths = ['{_quoted(path)}']", "enable_external_access = false",
        "lock_configuration = true",
    ):  # fmt: skip
        table.execute(f"SET {setting}")
    return table


def _quoted(path: str) -> str:
    return path.replace("'", "''")


def main(path: str, wanted: list[str]) -> int:
    """Print the names of all columns, then the rows of those that are wanted."""
    _limit_memory()
    import duckdb

    table = connected(path)
    there = f"FROM read_parquet('{_quoted(path)}')"
    try:
        names = [str(row[0]) for row in table.execute(f"DESCRIBE SELECT * {there}").fetchall()]
        sys.stdout.write(json.dumps(names) + "\n")
        columns = ", ".join(f'"{name}" := "{name}"' for name in wanted if name in names)
        if not columns:
            return 0
        # As JSON already there: dates and the like would need further packages to become Python's.
        rows = table.execute(f"SELECT to_json(struct_pack({columns}))::VARCHAR {there}")
        while some := rows.fetchmany(_ROWS):
            sys.stdout.write("".join(f"{row}\n" for (row,) in some))
    except (duckdb.OutOfMemoryException, MemoryError):
        return _NO_MEMORY
    except duckdb.Error as error:
        sys.stderr.write(str(error))
        return _UNREADABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
