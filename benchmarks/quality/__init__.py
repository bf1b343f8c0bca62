"""How close quantized models stay to the float model, ours and the peers', on the same tokens."""
