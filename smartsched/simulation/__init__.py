"""Pretend machines: `--simulate` in real time, and a whole box in virtual time."""
