"""Generated from protos/mesh/v1 by tools/protos.py: do not edit."""
