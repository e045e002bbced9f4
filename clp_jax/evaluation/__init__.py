"""Evaluation of steerable policies over weightings."""
