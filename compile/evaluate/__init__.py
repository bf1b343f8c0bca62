"""How good a model is: its predictions of a text, its answers, its choices."""
