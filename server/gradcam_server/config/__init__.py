"""The settings: flags, variables and the configuration file."""
