"""``python -m initopt``: the command line."""

from initopt.cli import main

if __name__ == "__main__":
    main()
