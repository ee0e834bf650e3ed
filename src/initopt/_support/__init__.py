"""What every room needs and no room is about: checks, errors, files, processes, progress."""
