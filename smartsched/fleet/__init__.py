"""All hosts as one for the loop: what it wants of GPUs, runs and claims is told to the agents that
live there, and what they report becomes observations and events.

Where the agent is (in this process, or on another machine) only the transport knows.
"""
