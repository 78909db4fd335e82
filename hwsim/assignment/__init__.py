"""Per-tensor fixed-point widths for training, found from a float run by the criteria of Sakr & Shanbhag."""
