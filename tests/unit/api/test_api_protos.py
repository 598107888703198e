"""What is generated is fresh, and every method of the services has somebody to answer it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.api.services import SERVICES, Stream, Unary, Upload
from mesh.v1 import files_pb2, ledger_pb2, market_pb2, modules_pb2, node_pb2, tasks_pb2

ROOT = Path(__file__).parents[3]
FILES = (market_pb2, tasks_pb2, node_pb2, files_pb2, modules_pb2, ledger_pb2)


@pytest.mark.slow
def test_the_generated_code_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "tools" / "protos.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_what_is_stale_is_named(tmp_path: Path) -> None:
    stale_files = runpy.run_path(str(ROOT / "tools" / "protos.py"))["stale_files"]
    fresh, committed = tmp_path / "fresh", tmp_path / "committed"
    for folder, texts in (
        (fresh, {"same.py": "1", "changed.py": "1", "new.pyi": "1"}),
        (committed, {"same.py": "1", "changed.py": "2", "old.py": "1", "notes.txt": "1"}),
    ):
        folder.mkdir()
        for name, text in texts.items():
            (folder / name).write_text(text)
    assert stale_files(fresh, committed) == ["changed.py", "new.pyi", "old.py"]


def test_every_method_is_answered_in_its_own_way() -> None:
    declared = {
        service.full_name: {
            method.name: (method.client_streaming, method.server_streaming)
            for method in service.methods
        }
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
    }
    kinds = {Unary: (False, False), Stream: (False, True), Upload: (True, False)}
    answered = {
        service: {name: kinds[type(method)] for name, method in methods.items()}
        for service, methods in SERVICES.items()
    }
    assert answered == declared


def test_every_method_has_request_and_answer_of_its_own() -> None:
    methods = [
        (f"{service.name}{method.name}", method)
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    for name, method in methods:
        assert method.input_type.name == f"{name}Request"
        assert method.output_type.name == f"{name}Response"
