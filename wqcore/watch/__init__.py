"""What people see of a running master: logs and status. A side stair: any floor may use it."""
