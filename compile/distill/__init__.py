"""Learning from a teacher, in PyTorch: the extra ``[distill]``."""
