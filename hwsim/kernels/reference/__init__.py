"""The definition: every result in Python integers and fractions, slow and readable."""
