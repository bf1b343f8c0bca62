"""A search for what cannot be reasoned out: how large a block is, how far ahead to ask."""
