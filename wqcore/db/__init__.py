"""PostgreSQL: connections, what its errors mean, statements, migrations, wake-ups, and an embedded server."""
