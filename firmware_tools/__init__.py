"""Where signed updates will be: bundle, sign, deploy, commit or roll back. Empty so far.

It will know a model only as an artifact: its manifest, entries and signature, never what made it
or what runs it.
"""
