"""``python -m kdump_elftool``: the same as the ``kdump-elftool`` command."""

from kdump_elftool.cli.main import console

if __name__ == "__main__":
    console()
