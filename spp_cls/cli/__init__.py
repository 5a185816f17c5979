"""The ground that every command stands on: typed keys, errors of one line, tables for the terminal, whole files.

In: what a user types and what conf/ holds. Out: checked values, or one line on stderr and status 1.
Start with command.py, which runs train.py and eval.py; schema.py checks values, errors.py ends a command, reading.py
reads files that anybody may have made.
"""
