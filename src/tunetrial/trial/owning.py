"""What a study's arms cost to own: its evidence, what was timed of it, and prices, the user's or of a day."""
