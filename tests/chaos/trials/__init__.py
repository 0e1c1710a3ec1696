"""Promises with a number, each tried until the number can be believed: a module each, found by `catalogue`."""
