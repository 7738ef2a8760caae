"""Records, errors and file integrity: what every layer may use, and what imports nothing of ours."""
