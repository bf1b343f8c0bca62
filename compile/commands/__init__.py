"""The compiler's commands: each a function of the module that has its name."""
