"""What an accelerator is: structure, mapping and prices."""
