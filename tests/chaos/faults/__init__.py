"""The faults that are injected into running pools, a module for each kind, found by `catalogue`."""
