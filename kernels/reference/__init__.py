"""Plain-torch definitions of the operators: the oracle for every faster version, and what runs where none does."""
