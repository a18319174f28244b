"""The OpenAI API at the scheduler rank: a server in a thread of its own, and what carries calls to the nodes and back."""
