"""`alenv-list`: the strategies, selectors, data sets and everything else there is a name for."""

import sys

from alenv import library


def main() -> None:
    """Print the names in each group; with arguments, in those groups only."""
    wanted = sys.argv[1:] or library.GROUPS
    for group in wanted:
        try:
            found = library.names(group)
        except ValueError as error:
            sys.exit(f"alenv: {error}")
        if found:
            sys.stdout.write(f"{group}: {', '.join(found)}\n")


if __name__ == "__main__":
    main()
