"""Wheels by name and digest through pip; a runtime for another platform from pinned parts."""

import base64
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from bundler.builtin.runtimes import pinned
from bundler.builtin.runtimes.pypi import PypiSource, WheelAddress
from bundler.builtin.runtimes.standalone import interpreter_path, stage_standalone
from bundler.errors import SourceError, UnsafeInput
from bundler.recipe import SourceReference
from bundler.store import Store
from bundler.world import World


def wheel(folder, name="tiny", version="1.0", *, tags="py3-none-any", files=None):
    """Write a small honest wheel and return its path."""
    path = folder / f"{name}-{version}-{tags}.whl"
    about = f"{name}-{version}.dist-info"
    contents = {
        f"{name}/__init__.py": b"answer = 42\n",
        f"{name}/slow.pyx": b"",
        f"{about}/METADATA": f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n".encode(),
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tags}\n".encode(),
        f"{about}/licenses/LICENSE": b"Do as you like.",
        f"{name}-{version}.data/purelib/{name}_more.py": b"more = True\n",
        f"{name}-{version}.data/scripts/run": b"#!python\n",
        **(files or {}),
    }
    record = "".join(
        f"{file},sha256="
        f"{base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}\n"
        for file, data in contents.items()
    )
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in contents.items():
            archive.writestr(zipfile.ZipInfo(file), data)
        archive.writestr(zipfile.ZipInfo(f"{about}/RECORD"), f"{record}{about}/RECORD,,\n")
    return path


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def address(path, sha256=None):
    name, version, *_ = path.name.split("-")
    return f"pypi:{name}=={version}/{path.name}#sha256={sha256 or digest(path)}"


@pytest.fixture
def shelf(tmp_path):
    """A folder of wheels that pip is configured to look at, and at nothing else."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder),
    }  # fmt: skip
    return folder, World(store=Store(tmp_path / "store"), environment=environment)


def read(world, locator, start=0, end=None):
    with PypiSource().open(locator, start=start, end=end, validator=None, world=world) as stream:
        return stream.start, stream.total_bytes, b"".join(stream.chunks)


def test_a_wheel_is_found_wherever_pip_is_told_to_look(shelf):
    folder, world = shelf
    path = wheel(folder)
    data = path.read_bytes()
    assert read(world, address(path)) == (0, len(data), data)
    assert read(world, address(path), 10) == (10, len(data), data[10:])
    assert read(world, address(path), 10, 20) == (10, len(data), data[10:20])
    assert not list(world.store.root.glob("wheel-*")), "scratch was left behind"


def test_a_wheel_of_another_machine_is_found_too(shelf):
    folder, world = shelf
    for tags in ("cp311-cp311-win_amd64", "cp310-abi3-macosx_13_0_arm64"):
        path = wheel(folder, tags=tags)
        assert read(world, address(path))[2] == path.read_bytes()


def test_a_wheel_with_other_bytes_is_refused_by_pip_itself(shelf):
    folder, world = shelf
    path = wheel(folder)
    with pytest.raises(SourceError, match="pip could not fetch it") as caught:
        read(world, address(path, "0" * 64))
    assert "pip config list" in caught.value.problems[0].hint
    assert len(str(caught.value)) < 600


def test_a_wheel_that_is_nowhere_is_an_error_in_pips_own_words(shelf):
    folder, world = shelf
    path = wheel(folder)
    where = address(path)
    path.unlink()
    with pytest.raises(SourceError, match=r"No matching distribution found for tiny==1\.0"):
        read(world, where)


def test_offline_pip_is_not_even_asked(shelf):
    folder, world = shelf
    offline = World(store=world.store, environment=world.environment, offline=True)
    with pytest.raises(SourceError, match="no connection may be opened"):
        read(offline, address(wheel(folder)))


@pytest.mark.parametrize(
    "bad",
    [
        "pypi:tiny==1.0/tiny.whl",
        "pypi:--index-url=x==1.0/t-1.0-py3-none-any.whl#sha256=" + "0" * 64,
        "pypi:tiny==1.0 --extra/t-1.0-py3-none-any.whl#sha256=" + "0" * 64,
        "pypi:tiny==1.0/../t-1.0-py3-none-any.whl#sha256=" + "0" * 64,
        "pypi:tiny==1.0\n-e x/t-1.0-py3-none-any.whl#sha256=" + "0" * 64,
        "pypi:tiny==1.0/t-1.0-py3-none-any.whl#sha256=" + "0" * 64 + "\n",
        "file:///etc/passwd",
        "",
    ],
)
def test_an_address_cannot_smuggle_options_or_paths_to_pip(tmp_path, bad):
    with pytest.raises(SourceError, match="is not `pypi:"):
        read(World(store=Store(tmp_path / "store")), bad)


def test_every_pinned_wheel_can_be_asked_for():
    for platform in pinned.PIP_PLATFORMS:
        for item in pinned.pinned_wheels(platform):
            parsed = WheelAddress.parse(item.address)
            assert (parsed.name, parsed.version, parsed.file) == (
                item.name,
                item.version,
                item.file,
            )
            assert all(
                re.fullmatch(r"--only-binary=:all:|--(platform|python-version)=[\w.]+", word)
                for word in parsed.pip_arguments()
            )


def test_a_pinned_package_resolves_to_its_wheels_of_all_platforms(tmp_path):
    item = next(w for w in pinned.pinned_wheels("linux-x86_64") if w.name == "xllamacpp")
    reference = SourceReference(source="pypi", locator=f"xllamacpp=={item.version}")
    resolution = PypiSource().resolve(reference, World(store=Store(tmp_path / "store")))
    assert len(resolution.files) == len(pinned.PIP_PLATFORMS)
    other = SourceReference(source="pypi", locator="numpy==1.0")
    with pytest.raises(SourceError, match="pinned"):
        PypiSource().resolve(other, World(store=Store(tmp_path / "store")))


# -- the tree for another platform -------------------------------------------------------------------


def archive(folder, platform, members):
    """Write a stand-in for a release's archive: the layout is real, the programs are not."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as target:
        for name, content in members.items():
            info = tarfile.TarInfo(f"python/{name}")
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                target.addfile(info)
            else:
                info.size, info.mode = len(content), 0o755 if "bin/" in name else 0o644
                target.addfile(info, io.BytesIO(content))
    path = folder / pinned.python_archive(platform)
    path.write_bytes(gzip.compress(plain.getvalue(), mtime=0))
    return path


UNIX = {
    "bin/python3.11": b"\xcf\xfa\xed\xfe program", "bin/python3": "python3.11",
    "bin/python": "python3.11", "bin/pip3": b"#!/x", "bin/python3.11-config": b"#!/x",
    "lib/libpython3.11.dylib": b"lib", "lib/libtcl8.6.dylib": b"tcl", "lib/tcl8.6/init.tcl": b"",
    "lib/python3.11/os.py": b"name = 'posix'\n", "lib/python3.11/LICENSE.txt": b"PSF",
    "lib/python3.11/test/test_os.py": b"x", "lib/python3.11/turtle.py": b"x",
    "lib/python3.11/site-packages/pip/__init__.py": b"x", "include/python3.11/Python.h": b"x",
    "lib/python3.11/lib-dynload/_tkinter.cpython-311-darwin.so": b"x",
    "lib/python3.11/lib-dynload/_json.cpython-311-darwin.so": b"x", "share/man/x": b"x",
}  # fmt: skip
WINDOWS = {
    "python.exe": b"MZ", "python311.dll": b"MZ", "vcruntime140.dll": b"MZ", "LICENSE.txt": b"PSF",
    "Lib/os.py": b"name = 'nt'\n", "Lib/idlelib/x.py": b"x", "Lib/site-packages/pip/x.py": b"x",
    "DLLs/_ssl.pyd": b"MZ", "DLLs/tcl86t.dll": b"MZ", "DLLs/_tkinter.pyd": b"MZ",
    "libs/python311.lib": b"x", "tcl/x": b"x", "Scripts/pip.exe": b"x", "include/Python.h": b"x",
}  # fmt: skip


@pytest.mark.parametrize(
    ("platform", "members", "kept"),
    [
        ("macos-arm64", UNIX, {
            "bin/python3", "lib/libpython3.11.dylib", "lib/python3.11/LICENSE.txt",
            "lib/python3.11/lib-dynload/_json.cpython-311-darwin.so", "lib/python3.11/os.py",
        }),
        ("windows-x86_64", WINDOWS, {
            "python.exe", "python311.dll", "vcruntime140.dll", "LICENSE.txt", "Lib/os.py",
            "DLLs/_ssl.pyd",
        }),
    ],
)  # fmt: skip
def test_a_tree_for_another_platform_has_what_is_needed_and_nothing_else(
    tmp_path, platform, members, kept
):
    inputs = [archive(tmp_path, platform, members), wheel(tmp_path, "xllamacpp")]
    # The store calls its objects by digest: the kind of an archive is known by its name only.
    named = {}
    for number, path in enumerate(inputs):
        named[path.name] = path.rename(tmp_path / f"object-{number}")
    out = tmp_path / "out"
    components, python = stage_standalone(platform, named, out)
    assert python == interpreter_path(platform)
    paths = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    plain = {path for path in paths if "__pycache__" not in path}
    assert {path.removeprefix("python/") for path in plain if path.startswith("python/")} == kept
    assert {path for path in plain if path.startswith("site/")} == {
        "site/xllamacpp/__init__.py", "site/xllamacpp_more.py",
        "site/xllamacpp-1.0.dist-info/METADATA", "site/xllamacpp-1.0.dist-info/WHEEL",
        "site/xllamacpp-1.0.dist-info/licenses/LICENSE",
    }  # fmt: skip
    assert [part["name"] for part in components] == ["python", "xllamacpp"]
    assert {"licenses/python/LICENSE.txt", "licenses/xllamacpp/LICENSE"} <= paths
    assert not [p for p in out.rglob("*") if p.is_symlink()]
    if sys.version_info[:2] == (3, 11):
        assert "site/xllamacpp/__pycache__/__init__.cpython-311.pyc" in paths


def test_the_windows_tree_brings_the_libraries_its_packages_load(tmp_path):
    files = {
        "msvc_runtime-1.0.data/data/msvcp140.dll": b"MZ", "msvc_runtime-1.0.data/data/x.dll": b"MZ",
        "msvc_runtime-1.0.data/data/vcomp140.dll": b"MZ",
        "msvc_runtime-1.0.data/data/Scripts/msvcp140.dll": b"MZ",
    }  # fmt: skip
    inputs = [
        archive(tmp_path, "windows-x86_64", WINDOWS), wheel(tmp_path, "msvc_runtime", files=files),
    ]  # fmt: skip
    stage_standalone("windows-x86_64", {path.name: path for path in inputs}, tmp_path / "out")
    libraries = {path.name for path in (tmp_path / "out" / "python").glob("*.dll")}
    assert libraries == {"python311.dll", "vcruntime140.dll", "msvcp140.dll", "vcomp140.dll"}
    names = {wheel.name for wheel in pinned.pinned_wheels("windows-x86_64")}
    assert "msvc-runtime" in names


def test_a_python_without_an_interpreter_is_refused(tmp_path):
    path = archive(tmp_path, "macos-arm64", {"lib/x": b"x"})
    with pytest.raises(UnsafeInput, match=r"holds no python/bin/python3"):
        stage_standalone("macos-arm64", {path.name: path}, tmp_path / "out")


def test_compiled_modules_are_used_and_name_no_folder_of_this_machine(tmp_path):
    files = {"mod/__init__.py": b"def f():\n    raise ValueError\n"}
    inputs = [archive(tmp_path, "macos-arm64", UNIX), wheel(tmp_path, "mod", files=files)]
    stage_standalone("macos-arm64", {path.name: path for path in inputs}, tmp_path / "out")
    site = tmp_path / "out" / "site"
    for cache in site.rglob("*.pyc"):
        assert str(tmp_path).encode() not in cache.read_bytes()
    Path(site / "mod" / "__init__.py").write_text("raise SystemExit('the source was read')\n")
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); import mod"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
