"""The data doctor: what is wrong with rows, found before time is spent on them; a file for each family of findings."""
