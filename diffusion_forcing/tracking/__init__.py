"""Where a run writes: its folder, logs, pictures, films, and one page to read them. Knows no network, no dataset and
no plot library."""
