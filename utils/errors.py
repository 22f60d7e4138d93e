"""The exception whose message is for the user, and how the scripts end with it."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A mistake the user can mend: the message says what was found, where, what was expected and what to do."""


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`. A UserError ends it with its message and exit code 2, Ctrl-C with 130; no traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
