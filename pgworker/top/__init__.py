"""`pgworker top`: the whole database on one screen, all hosts."""
