"""The command line, one module for each group of commands.

A module here imports what a command runs when it runs, so that help and wrong calls are answered at once.
"""
