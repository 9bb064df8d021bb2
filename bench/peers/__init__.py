"""The programs that the benchmark runs beside wqcore, one queue a file; README.md says what they must do."""
