"""tools/dev.py as a stranger runs it: a process of its own, in a checkout of its own.

A small stand-in for uv makes the environment, so that these tests fetch nothing: what is tested is
when dev.py makes one, when it does not, and what it says.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from attrs import frozen

DEV = Path(__file__).resolve().parents[3] / "tools" / "dev.py"
LOCK = """\
setuptools==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:bb
trio==2.0 \\
    --hash=sha256:cc
"""
UV = """\
#!/bin/sh
case "$1" in
--version) echo "uv 1" ;;
venv)
    echo "venv" >>"$CALLS"
    for last; do :; done
    mkdir -p "$last/bin" "$last/site"
    echo "home = here" >"$last/pyvenv.cfg"
    printf '#!/bin/sh\\ncase "$*" in *purelib*) echo "%s/site" ;; *) echo "$@" ;; esac\\n' \\
        "$last" >"$last/bin/python"
    chmod +x "$last/bin/python"
    ;;
pip)
    for last; do :; done
    echo "install $(grep -c == "$last")" >>"$CALLS"
    if [ -e "$BROKEN" ]; then
        echo "error: no such host"
        exit 2
    fi
    ;;
esac
"""


@frozen
class Checkout:
    """A copy of what dev.py needs, and a PATH on which there is nothing but a shell and uv."""

    root: Path

    def run(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.root / "path"),
            "CALLS": str(self.root / "calls"),
            "BROKEN": str(self.root / "broken"),
            **extra,
        }
        command = [sys.executable, str(self.root / "tools" / "dev.py"), *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for folder in ("tools", "config", "path"):
        (tmp_path / folder).mkdir()
    shutil.copy(DEV, tmp_path / "tools" / "dev.py")
    (tmp_path / "config" / "requirements.lock").write_text(LOCK)
    uv = tmp_path / "path" / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    for name in ("sh", "grep", "mkdir", "chmod"):
        found = shutil.which(name)
        assert found is not None
        os.symlink(found, tmp_path / "path" / name)
    return Checkout(tmp_path)


def test_the_first_run_prepares_and_the_second_starts_at_once(checkout: Checkout) -> None:
    first, second = checkout.run("demo", "--json"), checkout.run("demo")
    assert first.returncode == second.returncode == 0
    assert checkout.calls() == ["venv", "install 1", "install 2"]
    assert "preparing" in first.stderr
    assert second.stderr == ""


def test_stdout_belongs_to_the_command(checkout: Checkout) -> None:
    assert checkout.run("demo", "--json").stdout == "-m mesh demo --json\n"
    assert checkout.run("test", "-x").stdout == "-m pytest -x\n"
    assert checkout.run("check").stdout.strip().endswith("tools/check.py")


def test_setuptools_comes_first_so_that_every_build_uses_the_pinned_one(
    checkout: Checkout,
) -> None:
    checkout.run("demo")
    first = (checkout.root / ".venv" / "setuptools.lock").read_text()
    assert first == LOCK[: LOCK.index("trio")]


def test_another_lock_makes_another_environment(checkout: Checkout) -> None:
    checkout.run("demo")
    (checkout.root / "config" / "requirements.lock").write_text(LOCK.replace("2.0", "2.1"))
    checkout.run("demo")
    assert checkout.calls().count("venv") == 2


def test_an_install_that_broke_off_is_made_again(checkout: Checkout) -> None:
    (checkout.root / "broken").touch()
    assert checkout.run("demo").returncode == 1
    (checkout.root / "broken").unlink()
    assert checkout.run("demo").returncode == 0
    assert checkout.calls().count("venv") == 2


def test_a_failed_install_says_why_in_one_line(checkout: Checkout) -> None:
    (checkout.root / "broken").touch()
    failed = checkout.run("demo")
    assert failed.stdout == ""
    last = failed.stderr.splitlines()[-1]
    assert "no such host" in last
    assert "network" in last


def test_a_folder_that_is_no_environment_is_left_alone(checkout: Checkout) -> None:
    precious = checkout.root / "home"
    precious.mkdir()
    (precious / "letter").touch()
    refused = checkout.run("demo", MESH_VENV=str(precious))
    assert refused.returncode == 1
    assert "is not a virtual environment" in refused.stderr
    assert (precious / "letter").exists()


def test_mesh_venv_names_another_place(checkout: Checkout) -> None:
    place = checkout.root / "else" / "where"
    assert checkout.run("demo", MESH_VENV=str(place)).returncode == 0
    assert (place / "site" / "mesh-checkout.pth").read_text() == f"{checkout.root}\n"
    assert not (checkout.root / ".venv").exists()


def test_the_environment_has_a_mesh_command(checkout: Checkout) -> None:
    assert checkout.run("shell", "mesh", "ps").stdout == "-m mesh ps\n"


def test_an_empty_shim_is_not_taken_for_uv(checkout: Checkout) -> None:
    (checkout.root / "path" / "uv").write_text("#!/bin/sh\nexit 127\n")
    venv_less = "import sys; sys.modules['venv'] = None"
    (checkout.root / "sitecustomize.py").write_text(venv_less)
    failed = checkout.run("demo", PYTHONPATH=str(checkout.root))
    assert "with pip" in failed.stderr


def test_without_the_venv_module_it_names_the_package_to_install(checkout: Checkout) -> None:
    (checkout.root / "path" / "uv").unlink()
    (checkout.root / "venv.py").write_text("raise SystemExit('no ensurepip')\n")
    failed = checkout.run("demo", PYTHONPATH=str(checkout.root))
    assert failed.returncode == 1
    assert "apt install python3-venv" in failed.stderr


def test_without_a_fitting_python_it_says_which_ones_fit(checkout: Checkout) -> None:
    (checkout.root / "path" / "uv").unlink()
    old = "import sys; sys.version_info = (3, 9, 2)"
    (checkout.root / "sitecustomize.py").write_text(old)
    failed = checkout.run("demo", PYTHONPATH=str(checkout.root))
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1] == (
        "mesh: mesh needs Python 3.11-3.13; this is 3.9.2. Install one of them, or uv"
    )


def test_an_unknown_verb_shows_the_usage(checkout: Checkout) -> None:
    unknown, helped = checkout.run("fly"), checkout.run("--help")
    assert (unknown.returncode, unknown.stdout) == (2, "")
    assert "dev.py demo" in unknown.stderr
    assert helped.returncode == 0
    assert "dev.py demo" in helped.stdout
