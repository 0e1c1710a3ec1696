"""Defects of pgworker that are planted on purpose, in test processes only, to see that the checker finds them."""
