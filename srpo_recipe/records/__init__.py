"""What is on disk, each format once: files written whole, checkpoints, metrics, tables and figures."""
