"""The command line as a program: `retrievo`, and `python -m retrievo`, as torchrun needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; an interruption while it is imported is one line too."""
    from retrievo.distributed.environment import end_with_launcher

    end_with_launcher()
    try:
        from retrievo.cli import main as run
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
