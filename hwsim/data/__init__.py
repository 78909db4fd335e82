"""Real data sets, from the files their authors published."""
