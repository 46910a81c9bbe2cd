"""specdec's tests; a package, so that they can share helpers such as ``tiny_gguf``."""
