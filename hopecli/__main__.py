"""`python -m hopecli`, the same as `hope`."""

from hopecli.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
