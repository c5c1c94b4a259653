"""The command `qwen2-audio`: it translates between a terminal and the Python interface, nothing more."""
