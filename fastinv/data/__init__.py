"""Data: the procedural portraits (faces) and pictures from files (pictures)."""
