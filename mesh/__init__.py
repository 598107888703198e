"""mesh: a compute market without a centre. Start at mesh/README.md."""

__version__ = "0.1.0"
