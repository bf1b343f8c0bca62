"""The offline compiler: import, quantize, lower, build, pack. Runs on a workstation."""
