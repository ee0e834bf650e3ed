"""``python -m initopt``: the command line."""

from initopt._support.current_folder import leave_current_folder

if __name__ == "__main__":
    leave_current_folder()

    from initopt.cli import main  # not before: what this imports is to come from elsewhere

    main()
