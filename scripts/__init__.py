"""The command line and the set-up commands of the repository."""
