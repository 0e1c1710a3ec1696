"""What pools in trials run, and programs beside them; no trial is in here."""
