"""Data: SeqIO tasks, SentencePiece vocabularies and the self-made corpus `briefs`."""
