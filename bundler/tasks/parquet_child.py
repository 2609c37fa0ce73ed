"""Says what is in a Parquet file, as JSON lines. Run as a program by `parquet`, with limits; needs
nothing of ours.
"""

from __future__ import annotations

import json
import sys

MEMORY_BYTES = 1 << 30
"""Address space; DuckDB itself takes 200 MB of it."""
_UNREADABLE = 3
_ROWS = 1000


def _limit_memory() -> None:
    if sys.platform == "win32":
        return  # there is no such limit; DuckDB's own holds
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def main(path: str, wanted: list[str]) -> int:
    """Print the names of all columns, then the rows of those that are wanted."""
    _limit_memory()
    import duckdb

    quoted = path.replace("'", "''")
    table = duckdb.connect(
        config={
            "threads": 1, "memory_limit": "400MB", "autoinstall_known_extensions": False,
            "autoload_known_extensions": False, "temp_directory": "",
        }
    )  # fmt: skip
    try:
        for setting in (
            f"allowed_paths = ['{quoted}']", "enable_external_access = false",
            "lock_configuration = true",
        ):  # fmt: skip
            table.execute(f"SET {setting}")
        described = table.execute(f"DESCRIBE SELECT * FROM read_parquet('{quoted}')").fetchall()  # noqa: S608 - our own path
        there = [str(row[0]) for row in described]
        sys.stdout.write(json.dumps(there) + "\n")
        names = [name for name in wanted if name in there]
        if not names:
            return 0
        columns = ", ".join(f'"{name}"' for name in names)
        rows = table.execute(f"SELECT {columns} FROM read_parquet('{quoted}')")  # noqa: S608 - as above
        while some := rows.fetchmany(_ROWS):
            for row in some:
                sys.stdout.write(json.dumps(dict(zip(names, row, strict=True)), default=str) + "\n")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        sys.stderr.write(str(error))
        return _UNREADABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
