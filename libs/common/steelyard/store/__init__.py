"""All SQL and nothing else: tables, migrations, the outbox, and one file of verbs per noun."""
