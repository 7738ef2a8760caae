"""What a correct lab must reproduce: known facts about fine-tuning, run again on the embedded base and real data."""
