"""Where files lie: XDG, or everything below MESH_HOME."""

from pathlib import Path

import pytest

from mesh.errors import ConfigError
from mesh.paths import find_home


def test_the_xdg_defaults_lie_below_the_home_folder() -> None:
    home = find_home({"HOME": "/home/ann"})
    assert home.config_files == (
        Path("mesh.toml"),
        Path("/home/ann/.config/mesh/config.toml"),
        Path("/etc/mesh/config.toml"),
    )
    assert home.state == Path("/home/ann/.local/state/mesh")
    assert home.data == Path("/home/ann/.local/share/mesh")
    assert home.key_file == Path("/home/ann/.local/share/mesh/keys/node.key")
    assert home.socket == Path("/home/ann/.local/state/mesh/run/mesh.sock")


def test_xdg_variables_move_their_part() -> None:
    home = find_home({"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/run/user/1000"})
    assert home.state == Path("/s/mesh")
    assert home.facts == Path("/run/user/1000/mesh/node.json")
    assert home.data == Path("/h/.local/share/mesh")


def test_a_relative_xdg_variable_is_ignored_as_the_specification_says() -> None:
    assert find_home({"HOME": "/h", "XDG_DATA_HOME": "x"}).data == Path("/h/.local/share/mesh")


def test_mesh_home_moves_everything() -> None:
    home = find_home({"HOME": "/h", "MESH_HOME": "/m", "XDG_RUNTIME_DIR": "/run/user/1"})
    below = [home.state, home.data, home.keys, home.run, home.socket, home.facts, home.last_task]
    assert all(path.is_relative_to("/m") for path in below)
    assert home.config_files == (Path("mesh.toml"), Path("/m/config.toml"))


def test_without_any_home_the_way_out_is_named() -> None:
    with pytest.raises(ConfigError, match="HOME"):
        find_home({})


def test_a_socket_path_that_the_kernel_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="too long for a Unix socket"):
        _ = find_home({"MESH_HOME": "/" + "m" * 120}).socket
