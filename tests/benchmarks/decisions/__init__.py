"""What the scheduler's decisions are measured with: harm to colleagues first, speed second.

The real loop and core, in virtual time, in a pretend box of cards, our jobs and colleagues.
README.md says what is in it and how to add to it.
"""
