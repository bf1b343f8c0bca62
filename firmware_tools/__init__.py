"""What lies between the compiler and the board: bundle, sign, deploy, commit or roll back.

Knows a model only as an artifact: its manifest, entries and signature, never what made it or
what runs it.
"""
