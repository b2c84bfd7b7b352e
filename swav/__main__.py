"""`swav`, and `python -m swav`."""

import sys


def main() -> None:
    """Run the command line, where it can work: locks, signals and loader processes are those of POSIX."""
    if sys.platform == "win32":  # said before an import fails
        print(
            "swav: expected Linux or another POSIX system, found Windows, which is not supported; use WSL 2",
            file=sys.stderr,
        )
        sys.exit(4)
    from swav.cli import main as run

    run()


if __name__ == "__main__":
    main()
