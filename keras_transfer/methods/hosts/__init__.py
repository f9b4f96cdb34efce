"""One training on several hosts: who starts them, and who minds them."""
