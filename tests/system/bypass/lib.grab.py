"""Open each new terminal of the user as soon as it is there, and print to it."""

import os
import sys

from lib import new_terminals

for fd in new_terminals():
    os.write(fd, b"ACTED-" + sys.argv[1].encode() + b"\r\n")
    with open("grabbed", "w") as told:
        told.write("x\n")
