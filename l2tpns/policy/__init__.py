"""What is imposed on a session from outside: rates, walled gardens, filters, interception."""
