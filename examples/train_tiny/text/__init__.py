"""The generated corpus: word lists, a template grammar, the writers of each domain, and their mixture."""
