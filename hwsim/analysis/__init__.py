"""What a study's results say beyond its tables: sections of the page that an experiment asks for by name."""
