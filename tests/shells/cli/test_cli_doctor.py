"""`mesh doctor`: named checks, each with its fix."""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from mesh.cli import doctor
from mesh.cli.doctor import Verdict
from mesh.cli.main import cli
from mesh.config import Config, Network
from mesh.paths import find_home
from mesh.runtime.sandbox import walls


def test_pythons_within_the_range_are_fit() -> None:
    verdicts = [doctor.check_python((3, minor)).verdict for minor in (10, 11, 13, 14)]
    assert verdicts == [Verdict.FAIL, Verdict.OK, Verdict.OK, Verdict.FAIL]


def test_a_key_that_others_may_read_fails_with_the_command_that_mends_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    key = tmp_path / "node.key"
    assert doctor.check_key(key).verdict == Verdict.OK
    key.touch(0o600)
    assert doctor.check_key(key).verdict == Verdict.OK
    key.chmod(0o644)
    check = doctor.check_key(key)
    assert (check.verdict, check.fix) == (Verdict.FAIL, f"chmod 600 {key}")
    key.chmod(0o600)
    tmp_path.chmod(0o770)
    assert doctor.check_key(key).fix == f"chmod 700 {tmp_path}"
    tmp_path.chmod(0o700)


def test_a_disk_smaller_than_the_quota_is_a_warning(tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path / "not" / "yet", 1).verdict == Verdict.OK
    assert doctor.check_disk(tmp_path, 1 << 60).verdict == Verdict.WARN


def test_no_ipfs_daemon_is_fine() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        check = doctor.check_ipfs(url)
    assert check.verdict == Verdict.OK
    assert "embedded store" in check.detail


def test_an_ipfs_daemon_is_named_with_its_version() -> None:
    class Daemon(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = b'{"Version": "0.39.0"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Daemon) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        check = doctor.check_ipfs(f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert "daemon 0.39.0" in check.detail


def test_no_binaryen_is_fine_and_one_that_bills_wrong_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESH_BINARYEN", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor.check_binaryen()
    assert (check.verdict, check.fix) == (Verdict.OK, "")
    assert "none" in check.detail
    program = tmp_path / "wasm-opt"
    for version, verdict in (("116", Verdict.OK), ("132", Verdict.WARN), ("", Verdict.WARN)):
        program.write_text(f"#!/bin/sh\necho wasm-opt version {version}\n")
        program.chmod(0o755)
        check = doctor.check_binaryen()
        assert check.verdict == verdict
        assert version in check.detail
    monkeypatch.setenv("MESH_BINARYEN", str(tmp_path / "none"))
    check = doctor.check_binaryen()
    assert (check.verdict, "which is no file" in check.detail) == (Verdict.WARN, True)


def test_a_port_of_another_program_is_a_warning_unless_our_node_runs() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        config = Config(network=Network(grpc_port=port, listen_port=0, websocket_port=0))
        without = [check.verdict for check in doctor.check_ports(config, None)]
        within = [check.verdict for check in doctor.check_ports(config, {"peer": "x"})]
    assert without == [Verdict.OK, Verdict.WARN, Verdict.OK]
    assert within == [Verdict.OK] * 3


def test_a_socket_path_that_is_too_long_fails() -> None:
    check = doctor.check_socket(find_home({"MESH_HOME": "/" + "m" * 120}))
    assert check.verdict == Verdict.FAIL


def test_the_sandbox_is_started_in_a_child_at_the_pinned_version() -> None:
    assert doctor.check_sandbox().verdict == Verdict.OK


def test_each_wall_is_tried_and_a_missing_one_is_a_warning_with_what_it_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    standing = {check.name for check in doctor.check_walls() if check.verdict == Verdict.OK}
    assert standing == set(walls())
    monkeypatch.setattr(doctor.sys, "executable", "/nowhere/python")
    checks = list(doctor.check_walls())
    assert [(check.name, check.verdict) for check in checks] == [
        ("landlock", Verdict.WARN),
        ("seccomp", Verdict.WARN),
    ]
    assert all("escaped code could" in check.detail and check.fix for check in checks)


def test_a_configuration_that_does_not_load_fails_and_the_rest_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    monkeypatch.setenv("MESH_NETWORK__GRCP_PORT", "1")
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    checks = json.loads(result.stdout)
    assert result.exit_code == 1
    assert checks["schema"] == "mesh.checks/v1"
    assert checks["checks"][-1]["name"] == "config"
    assert checks["checks"][-1]["fix"] == "did you mean network.grpc_port?"


def test_a_fit_machine_has_exit_code_0_and_a_line_for_each_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MESH_HOME", str(tmp_path))
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.stdout
    assert "mesh join starts one" in result.stdout
