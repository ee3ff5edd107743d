"""The command line as a program: `retrievo`, and `python -m retrievo`, as torchrun needs it."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Runs the command line in an environment of its own; an interruption while it is imported is one line too."""
    from retrievo.distributed.environment import end_with_launcher, process_environment

    end_with_launcher()
    os.environ.update(process_environment(int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    try:
        from retrievo.cli import main as run
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
