"""Other runtimes beside specdec on the same checkpoint and prompts: ``python -m bench.peers``.

Modules named after a peer run in that peer's own environment as well, so at import they take
nothing but the standard library.
"""
