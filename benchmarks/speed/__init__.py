"""The compiled models' speed beside llama.cpp's and OpenVINO's: ``python -m benchmarks.speed``."""
