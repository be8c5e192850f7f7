"""The packet formats of nsctl and their authentication (docs/nsctl.md). Pure."""
