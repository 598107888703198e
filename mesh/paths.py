"""Where things lie: by the XDG base directories, or all below MESH_HOME (many nodes on one host).

https://specifications.freedesktop.org/basedir-spec/latest/
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from attrs import frozen

from mesh.errors import ConfigError

SOCKET_PATH_MAX = 100
"""Bytes. The kernel's sun_path has 108 on Linux and 104 on macOS."""


@frozen
class Home:
    """The folders of one node. None of them is made by looking at it."""

    config_files: tuple[Path, ...]
    """Where a configuration may lie; the first wins, key by key."""
    state: Path
    """Databases and what the node and its user must remember."""
    data: Path
    """Blocks of the embedded store: may be large."""
    keys: Path
    """0700."""
    run: Path
    """The socket and node.json: gone after a reboot."""

    @property
    def socket(self) -> Path:
        """The node's Unix socket, 0600. Raises ConfigError where the path is too long for one."""
        path = self.run / "mesh.sock"
        if len(bytes(path)) > SOCKET_PATH_MAX:
            raise ConfigError(
                "MESH_HOME",
                f"{path} is too long for a Unix socket ({SOCKET_PATH_MAX} bytes)",
                "choose a folder with a shorter path",
            )
        return path

    @property
    def facts(self) -> Path:
        """node.json: where the running node listens and who it is."""
        return self.run / "node.json"

    @property
    def key_file(self) -> Path:
        """The node's Ed25519 key, unless `identity.key_file` names another."""
        return self.keys / "node.key"

    @property
    def last_task(self) -> Path:
        """What `@last` means."""
        return self.state / "last-task"


def find_home(environ: Mapping[str, str]) -> Home:
    """The folders that *environ* asks for. Raises ConfigError when it has neither home nor HOME."""
    if root := environ.get("MESH_HOME"):
        base = Path(root).absolute()
        return Home(
            config_files=(Path("mesh.toml"), base / "config.toml"),
            state=base / "state",
            data=base / "data",
            keys=base / "keys",
            run=base / "run",
        )
    state = _xdg(environ, "XDG_STATE_HOME", ".local/state")
    data = _xdg(environ, "XDG_DATA_HOME", ".local/share")
    runtime = environ.get("XDG_RUNTIME_DIR")
    return Home(
        config_files=(
            Path("mesh.toml"),
            _xdg(environ, "XDG_CONFIG_HOME", ".config") / "config.toml",
            Path("/etc/mesh/config.toml"),
        ),
        state=state,
        data=data,
        keys=data / "keys",
        run=Path(runtime) / "mesh" if runtime else state / "run",
    )


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    given = environ.get(variable, "")
    if given.startswith("/"):  # the specification: a relative path is to be ignored
        return Path(given) / "mesh"
    home = environ.get("HOME")
    if not home:
        raise ConfigError("HOME", "is not set", "set HOME, or MESH_HOME to a folder of its own")
    return Path(home) / default / "mesh"
