"""The torch back end: plain tensor operations on any device."""
