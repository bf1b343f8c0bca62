"""Back ends: each turns a family's graph into code for one kind of processor."""
