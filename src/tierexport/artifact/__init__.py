"""What lies in an artifact folder: the manifest, the verdicts, the names of its files."""
