-- One declaration at a time: two that start together would lock rows in each other's way. Burials only read them.
lock table pgworker.dead_letter_hooks in share row exclusive mode
