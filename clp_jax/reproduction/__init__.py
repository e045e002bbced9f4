"""The paper's claims, each put to the test on briefs."""
