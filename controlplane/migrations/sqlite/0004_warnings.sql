-- What the check of a document warned of when a generation was made of it, a line each. NULL: an earlier version made it.
ALTER TABLE generation ADD COLUMN warnings TEXT;
