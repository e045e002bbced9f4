"""Briefs: a small synthetic summarisation corpus with analytic rewards and an analytic oracle.

`world` says what can happen and how likely it is, `language` puts it into words and reads it
back, `corpus` draws documents and reference summaries, `rewards` scores completions exactly, and
`oracle` gives the best attainable front.
"""
