"""One adapter a task: from a batch to tokens, from tokens to what the task wants. Extension point."""
