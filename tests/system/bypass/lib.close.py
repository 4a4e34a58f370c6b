"""Close the next terminal of the user to others as soon as it is there, until somebody has it."""

import fcntl
import os
import termios

from lib import new_terminals

fd = next(new_terminals())
fcntl.ioctl(fd, termios.TIOCEXCL)
with open("kept"):
    fcntl.ioctl(fd, termios.TIOCNXCL)
    os.close(fd)
