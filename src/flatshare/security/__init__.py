"""Who calls, whether it may, and a record of it: access keys, signatures, the audit log. Every road asks here."""
