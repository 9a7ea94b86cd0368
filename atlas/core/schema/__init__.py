"""How messages are described, written, read back, and kept compatible."""
