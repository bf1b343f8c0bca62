"""The commands of ``edge-llm``, one file each; what they need is imported when they run."""
