"""The command ``metatasnet-fast``: a file for each subcommand, or for a few that belong together.

Nothing here imports torch before a command runs.
"""
