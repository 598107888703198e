"""`python -m mesh`: the command line."""

from mesh.cli.main import main

if __name__ == "__main__":
    main()
