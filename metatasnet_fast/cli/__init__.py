"""The command ``metatasnet-fast``: one file per subcommand. Nothing here imports torch before a command runs."""
