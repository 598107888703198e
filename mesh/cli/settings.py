"""The configuration as this machine has it: files and environment read, flags laid on top."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from mesh.config import Config, Layer, configure, environment_layers, parse_toml
from mesh.errors import ConfigError
from mesh.paths import Home, find_home

FILE_BYTES_MAX = 1 << 20


def load(
    flags: Sequence[Layer] = (), environ: Mapping[str, str] = os.environ
) -> tuple[Config, Home]:
    """Configuration and folders. Raises ConfigError."""
    home = find_home(environ)
    layers = [*read_files(home), *environment_layers(environ), *flags]
    return configure(layers), home


def read_files(home: Home) -> list[Layer]:
    """A layer for each configuration file that exists, the least important one first."""
    layers = []
    for path in reversed(home.config_files):
        try:
            if path.is_file():
                with path.open(encoding="utf-8") as file:
                    layers.append(parse_toml(file.read(FILE_BYTES_MAX), str(path)))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(str(path), str(error), "mend or remove the file") from None
    return layers
