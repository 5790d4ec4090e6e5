"""The words after `cilkit`: one file each, with `add(commands)` for its arguments and what it does."""
