"""How often the judge is wrong, and how long it takes to be right, by simulation."""
