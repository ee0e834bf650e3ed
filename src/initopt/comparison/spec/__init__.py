"""What is to be compared, checked before any work."""
