"""A machine that tries to break pgworker, with evidence kept outside of it. README.md of tests says how it is run."""
