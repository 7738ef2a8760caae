"""What leaves a study: files that other programs run, and proof that each of them still computes the same."""
