from splitpoint.cli import script

script()
