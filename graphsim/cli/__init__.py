"""The command line: options shared by all commands, and a file for each."""
