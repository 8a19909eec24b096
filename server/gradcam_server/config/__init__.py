"""The settings: flags, variables and the configuration file.

settings       the table of all settings
models         the models to load, from the settings
click_options  the settings as options of click commands
file           the configuration file
shares         the part that each of several front ends has of a limit
"""
