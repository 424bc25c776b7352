"""The command ``metatasnet-fast``: one file for a subcommand, or for a few that belong together. Nothing here imports torch before a command runs."""
