"""12. Page: runs and findings -> one HTML page that needs nothing from outside."""
