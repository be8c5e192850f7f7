"""The operator's configuration: settings, access lists, files, and changes to a running server."""
