"""From float matrices to the formats that a device multiplies."""
