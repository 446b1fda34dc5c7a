"""The command line, a module for each group. What a command runs is imported when it runs: help comes at once."""
